"""`unbackdoor evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from unbackdoor.cli.options import (
    announce,
    arch_option,
    csv_option,
    download_option,
    emit,
    force_option,
    key_option,
    part_option,
    quiet_option,
)
from unbackdoor.errors import SettingError


@click.command()
@click.argument("model")
@arch_option
@key_option
@part_option
@click.option(
    "--data",
    required=True,
    help="Data set with the test images: cifar10, ..., a data.toml, or a folder (docs/data.md).",
)
@click.option(
    "--attack",
    "attack_text",
    help="For ASR, RA and RECALL: an attack such as badnet or badnet:size=3, or the attack.json that train wrote.",
)
@click.option("--target", type=int, help="The attacker's class. Default: the one in --attack, else 0.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data sets ($UNBACKDOOR_DATA).")
@download_option
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@csv_option
@force_option
@quiet_option
def command(
    *,
    model: str,
    arch: str | None,
    key: str | None,
    part: str | None,
    data: str,
    attack_text: str | None,
    target: int | None,
    device: str,
    data_dir: Path | None,
    download: bool,
    form: str,
    csv_file: Path | None,
    force: bool,
    quiet: bool,
) -> None:
    """Measure a model file on a test set.

    ACC (accuracy): clean images given their true class. With an attack also ASR (attack success rate): triggered images
    of other classes given the attacker's class; RA (robust accuracy): the same images given their true class; and
    RECALL: clean images of the attacker's class that are given it.
    """
    from unbackdoor.api import evaluate, load_model
    from unbackdoor.atomic import check_target
    from unbackdoor.attacks import check_target_class, load_attack, parse_attack
    from unbackdoor.cli.progress import bar
    from unbackdoor.data import dataset_spec
    from unbackdoor.metrics import check_device
    from unbackdoor.report.results import rates

    if target is not None and attack_text is None:
        raise SettingError("--target names the class of an attack: give --attack too, or leave --target out")
    if csv_file is not None:
        check_target(csv_file, overwrite=force, inputs=[model])
    spec = dataset_spec(data)
    check_device(device)
    attack = None
    if attack_text is not None:
        is_file = attack_text.endswith(".json")
        attack = load_attack(Path(attack_text)) if is_file else parse_attack(attack_text, target=target)
        check_target_class(attack, target, attack_text)
        attack.check_data(spec)
    announce(arch, quiet=quiet)
    network = load_model(model, arch=arch, key=key)
    with bar("evaluating", quiet=quiet) as update:
        result = evaluate(
            network,
            data=data,
            attack=attack,
            output=part,
            data_dir=data_dir,
            download=download,
            device=device,
            progress=update,
        )
    if csv_file is not None:
        emit(result.to_csv(), csv_file, overwrite=force)
    if form == "json":
        record = {"schema_version": 1, "model": model, "data": data, "result": result.to_dict()}
        click.echo(json.dumps(record, indent=2))
        return
    click.echo(rates(result), nl=False)
