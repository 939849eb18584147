"""`unbackdoor defend`."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from unbackdoor.cli.options import (
    Listing,
    announce,
    arch_option,
    csv_option,
    download_option,
    emit,
    input_option,
    is_file_name,
    key_option,
    max_damage_option,
    overrule_option,
    part_and_file,
    part_option,
    quiet_option,
    registered,
    say_written,
)
from unbackdoor.errors import DamageError, IncompleteError, SettingError

#: Options that name a file or folder of this machine.
_LOCAL = ("--data-dir", "--report", "--record", "--csv", "-o")


@click.command(
    epilog="Exit codes: 0 done; 2 error, file refused, or too large a loss of accuracy predicted; 3 part of the model "
    "could not be read, or no layer was scored. Then nothing is written without --partial. With it, 3 also means that "
    "only the classifier was edited."
)
@click.argument("model")
@click.option(
    "--method",
    "method_text",
    required=True,
    cls=Listing,
    names=lambda: registered("defences.table", "DEFENCES"),
    help="NAMES; with settings as in anp:threshold=0.1 (docs/defences.md).",
)
@click.option(
    "--preset",
    cls=Listing,
    names=lambda: registered("defences.table", "PRESETS"),
    help="Settings of another source, or that belong together: NAMES; which method has which is in docs/defences.md.",
)
@click.option("--data", help="Data set: cifar10, ..., a data.toml, or a folder of images (docs/data.md).")
@click.option(
    "--clean",
    type=float,
    default=0.05,
    show_default=True,
    help="Clean training images for the method: a fraction up to 1, or a count.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Decides which images, and the method's random choices."
)
@click.option("--evaluate", "measured", is_flag=True, help="Measure ACC on the test images, before and after.")
@click.option(
    "--attack",
    "attack_text",
    help="Attack to measure ASR, RA and RECALL with: badnet, badnet:size=3, or the attack.json that train wrote.",
)
@click.option(
    "--poisoned",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of the method's images that carry the trigger, for methods that use training images (ep).",
)
@click.option("-o", "output", type=click.Path(path_type=Path), help="The repaired file: .safetensors, .pt, .pth, ...")
@click.option("--partial", is_flag=True, help="Repair what could be read, even if a part could not.")
@arch_option
@input_option
@key_option
@part_option
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data sets ($UNBACKDOOR_DATA).")
@download_option
@click.option("--format", "form", type=click.Choice(["text", "json", "html"]), default="text", show_default=True)
@click.option(
    "--report", "report_file", type=click.Path(path_type=Path), help="Write the report to this file, not to stdout."
)
@click.option(
    "--record", "record_file", type=click.Path(path_type=Path), help="Write settings, rates and time as JSON."
)
@csv_option
@max_damage_option
@overrule_option
@quiet_option
def command(
    *,
    model: str,
    method_text: str,
    preset: str | None,
    data: str | None,
    clean: float,
    seed: int,
    measured: bool,
    attack_text: str | None,
    poisoned: float,
    output: Path | None,
    partial: bool,
    arch: str | None,
    example: Any,
    key: str | None,
    part: str | None,
    device: str,
    data_dir: Path | None,
    download: bool,
    form: str,
    report_file: Path | None,
    record_file: Path | None,
    csv_file: Path | None,
    max_damage: float | None,
    force: bool,
    quiet: bool,
) -> int:
    """Repair a network by any method, with or without clean images. The input file is never modified."""
    from unbackdoor.api import defend
    from unbackdoor.atomic import atomic_write, check_target
    from unbackdoor.attacks import load_attack, parse_attack
    from unbackdoor.cli import say
    from unbackdoor.cli.progress import bar
    from unbackdoor.defences.table import parse_method
    from unbackdoor.provenance import circumstances
    from unbackdoor.report.results import rates_line

    part, output = part_and_file(part, output)
    method = parse_method(method_text, preset=preset)
    measured = measured or attack_text is not None or record_file is not None or csv_file is not None
    if output is None and not measured:
        raise SettingError("defend: expected -o OUT for the repaired file, --evaluate for its rates, or both")
    targets = [path.resolve() for path in (output, report_file, record_file, csv_file) if path is not None]
    if len(set(targets)) < len(targets):
        raise SettingError("defend: expected different files for -o, --report, --record and --csv")
    for path in (report_file, record_file, csv_file):
        if path is not None:
            check_target(path, overwrite=force, inputs=[model])
    attack = None
    if attack_text is not None:
        attack = load_attack(attack_text) if attack_text.endswith(".json") else parse_attack(attack_text)
    announce(arch, quiet=quiet)
    code = 0
    limit = max_damage if max_damage is None or not force else math.inf
    done = None
    try:
        with bar(method.name, quiet=quiet) as update:
            done = defend(
                model,
                output,
                method=method,
                data=data,
                clean=clean,
                seed=seed,
                attack=attack,
                poisoned=poisoned,
                measured=measured,
                arch=arch,
                key=key,
                example=example,
                answer=part,
                data_dir=data_dir,
                download=download,
                device=device,
                overwrite=force,
                partial=partial,
                max_damage=limit,
                progress=update,
            )
        report = done.report
        if report.output is not None and report.only_classifier:
            code = 3
    except IncompleteError as error:
        say(str(error))
        report, code = error.report, 3
    except DamageError as error:
        say(str(error))
        report, code = error.report, 2
    text = {"text": report.to_text, "json": report.to_json, "html": report.to_html}[form]()
    emit(text, report_file, overwrite=force)
    if done is not None and done.before is not None and done.after is not None:
        for label, rates in (("before", done.before), ("after", done.after)):
            click.echo(f"{label:<7} {rates_line(rates)}", err=form != "text" and report_file is None)
        if record_file is not None:
            command = shlex.join(["unbackdoor", *_portable(sys.argv[1:])])
            record = {"command": command, "poisoned": poisoned, **done.record(), **circumstances(device)}
            with atomic_write(record_file, overwrite=force) as stream:
                stream.write((json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
        if csv_file is not None:
            emit(done.after.to_csv(), csv_file, overwrite=force)
    if not quiet and done is not None:
        click.echo(f"{method.name}: {done.seconds:.1f} s", err=True)
        if report.output is not None:
            say_written(output, report)
    return code


def _portable(words: list[str]) -> list[str]:
    """The command line without this machine's folders, for a record that others read."""
    result, skip = [], False
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if skip:
            skip = False
        elif name == "--output" and is_file_name(value or following):
            skip = not value
        elif word in _LOCAL:
            skip = True
        elif not word.startswith((*(f"{option}=" for option in _LOCAL), "-o")) and word != "--force":
            result.append(Path(word).name if Path(word).is_absolute() else word)
    return result
