"""`unbackdoor diff`."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from unbackdoor.cli.options import announce, arch_option, input_option, key_option, mean_option, std_option
from unbackdoor.errors import SettingError


@click.command(epilog="Exit codes: 0 no difference; 1 differences; 2 error, or file refused.")
@click.argument("a")
@click.argument("b")
@key_option
@click.option(
    "--damage",
    "with_damage",
    is_flag=True,
    help="Also run both networks on generated images, and predict how much accuracy B has lost.",
)
@arch_option
@click.option("--data", help="With --damage: the data set whose image size and normalisation the networks take.")
@input_option
@mean_option
@std_option
@click.option("--seed", type=int, default=0, show_default=True, help="With --damage: of the generated images.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(
    *,
    a: str,
    b: str,
    key: str | None,
    with_damage: bool,
    arch: str | None,
    data: str | None,
    example: Any,
    mean: Any,
    std: Any,
    seed: int,
    form: str,
) -> int:
    """List the channels that differ between two model files, bit by bit."""
    from unbackdoor.api import diff, predict_damage
    from unbackdoor.findings.values import plain
    from unbackdoor.report.results import differences

    given = {"--arch": arch, "--data": data, "--input": example, "--mean": mean, "--std": std, "--seed": seed or None}
    unused = [name for name, value in given.items() if value is not None]
    if unused and not with_damage:
        raise SettingError(f"diff: {unused[0]} runs the networks: give --damage too, or leave it out")
    found = diff(a, b, key=key)
    damage = None
    if with_damage:
        announce(arch, quiet=False)
        damage = predict_damage(a, b, data=data, arch=arch, key=key, example=example, mean=mean, std=std, seed=seed)
    if form == "json":
        record = {"schema_version": 1, "a": a, "b": b, "differences": [dataclasses.asdict(d) for d in found]}
        click.echo(json.dumps(record if damage is None else {**record, "damage": plain(damage)}, indent=2))
        return 1 if found else 0
    click.echo(differences(found), nl=False)
    if damage is not None:
        click.echo("\n" + damage.to_text(), nl=False)
    return 1 if found else 0
