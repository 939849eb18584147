"""`unbackdoor repair`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from unbackdoor.cli.options import (
    announce,
    arch_option,
    build_method,
    emit,
    format_option,
    input_option,
    key_option,
    max_damage_option,
    mean_option,
    method_options,
    overrule_option,
    quiet_option,
    say_written,
    std_option,
)
from unbackdoor.errors import ArchitectureError, CheckpointError, DamageError, IncompleteError, SettingError
from unbackdoor.report.sarif import render_unread


@click.command(
    epilog="Exit codes: 0 written and read back (with --dry-run: would be); 2 error, file refused, or too large a loss "
    "of accuracy predicted; 3 part of the model could not be read or paired. Then nothing is written, unless --partial "
    "is given and a layer can be edited. With --partial, 3 means that only the classifier was edited."
)
@click.argument("source", metavar="IN")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The repaired file: .safetensors, .pt, .pth, ...")
@arch_option
@input_option
@click.option(
    "--data",
    help="The data set whose image size and normalisation a network that is run takes; no image of it is read.",
)
@mean_option
@std_option
@key_option
@method_options
@click.option("--dry-run", is_flag=True, help="Report what a repair would do; write nothing.")
@click.option("--partial", is_flag=True, help="Repair what could be read, even if a part could not.")
@format_option
@click.option(
    "--report", "report_file", type=click.Path(path_type=Path), help="Write the report to this file, not to stdout."
)
@max_damage_option
@click.option("--seed", type=int, default=0, show_default=True, help="Decides all that a method draws.")
@overrule_option
@quiet_option
def command(
    *,
    source: str,
    output: Path | None,
    arch: str | None,
    example: Any,
    data: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    key: str | None,
    method: str,
    dry_run: bool,
    partial: bool,
    form: str,
    report_file: Path | None,
    max_damage: float | None,
    seed: int,
    force: bool,
    quiet: bool,
    **settings: Any,
) -> int:
    """Repair a network with no data: by its outlier channels, or (best, erase, forget, pushing) by closing the class
    that is too easy to reach. The input file is never modified."""
    from unbackdoor.api import repair
    from unbackdoor.api.damage import check_damage
    from unbackdoor.atomic import check_target
    from unbackdoor.cli import say
    from unbackdoor.cli.progress import bar

    if output is None and not dry_run:
        raise SettingError("repair: expected -o OUT, the name of the repaired file, or --dry-run")
    if report_file is not None:
        if output is not None and report_file.resolve() == output.resolve():
            raise SettingError(f"--report {report_file}: is the repaired file's name; choose another")
        check_target(report_file, overwrite=force, inputs=[source])
    announce(arch, quiet=quiet)
    code = 0
    limit = max_damage if max_damage is None or not force else math.inf
    try:
        built = build_method(method, settings)
        with bar("repairing", quiet=quiet or not built.runs) as update:
            report = repair(
                source,
                output,
                method=built,
                arch=arch,
                key=key,
                example=example,
                data=data,
                mean=mean,
                std=std,
                overwrite=force,
                partial=partial,
                max_damage=limit,
                dry_run=dry_run,
                seed=seed,
                progress=update,
            )
        if dry_run:
            check_damage(report, limit, source)
        if report.only_classifier or (dry_run and report.blocks(partial=partial)):
            code = 3
    except IncompleteError as error:
        say(str(error))
        report, code = error.report, 3
    except DamageError as error:
        say(str(error))
        report, code = error.report, 2
    except (CheckpointError, ArchitectureError) as error:
        if form != "sarif":
            raise
        say(str(error))
        emit(render_unread(source, str(error), action="repair"), report_file, overwrite=force)
        return 2
    text = {"text": report.to_text, "json": report.to_json, "html": report.to_html, "sarif": report.to_sarif}[form]()
    emit(text, report_file, overwrite=force)
    if report.unusual is not None and report_file is not None and not quiet:
        say(f"warning: {report.unusual}")  # the report has it too, but is not shown here
    if report.output is not None and not quiet:
        say_written(output, report)
    return code
