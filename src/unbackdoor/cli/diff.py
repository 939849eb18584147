"""`unbackdoor diff`."""

from __future__ import annotations

import dataclasses
import json

import click

from unbackdoor.cli.options import key_option


@click.command(epilog="Exit codes: 0 no difference; 1 differences; 2 error, or file refused.")
@click.argument("a")
@click.argument("b")
@key_option
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(*, a: str, b: str, key: str | None, form: str) -> int:
    """List the channels that differ between two model files, bit by bit."""
    from unbackdoor.api import diff
    from unbackdoor.report.results import differences

    found = diff(a, b, key=key)
    if form == "json":
        record = {"schema_version": 1, "a": a, "b": b, "differences": [dataclasses.asdict(d) for d in found]}
        click.echo(json.dumps(record, indent=2))
        return 1 if found else 0
    click.echo(differences(found), nl=False)
    return 1 if found else 0
