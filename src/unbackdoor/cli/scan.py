"""`unbackdoor scan`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unbackdoor.cli.options import (
    announce,
    arch_option,
    build_method,
    emit,
    force_option,
    format_option,
    input_option,
    key_option,
    mean_option,
    method_options,
    quiet_option,
    std_option,
)
from unbackdoor.errors import SettingError, UnbackdoorError
from unbackdoor.report.escape import visible

if TYPE_CHECKING:
    from unbackdoor.findings import Report

LEVELS = ("outlier", "near", "suspect", "never")


@click.command(
    epilog="Exit codes: 0 read in full, and nothing at or above --fail-on; 1 findings; 2 error, or file refused; "
    "3 part of a model could not be read or paired, or no layer was scored, or --deep cannot tell. If several apply: "
    "2, then 3, then 1."
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@arch_option
@input_option
@key_option
@method_options
@click.option(
    "--fail-on",
    type=click.Choice(LEVELS),
    default="outlier",
    show_default=True,
    help="What gives exit code 1: an outlier channel (or a suspected class), a near outlier too, a suspected class "
    "alone (with --deep), or nothing.",
)
@click.option(
    "--deep",
    is_flag=True,
    help="Run the network, too, on images made from it, and look for a class that is too easy to reach (about a minute "
    "and more; needs --arch if the file does not name its network).",
)
@click.option("--data", help="For --deep: the data set whose size and normalisation are taken; no image of it is read.")
@mean_option
@std_option
@click.option("--seed", type=int, default=0, show_default=True, help="For --deep: decides all that is drawn.")
@format_option
@click.option("--output", type=click.Path(path_type=Path), help="Write the report to this file, not to stdout.")
@force_option
@quiet_option
def command(
    *,
    paths: tuple[str, ...],
    arch: str | None,
    example: Any,
    key: str | None,
    method: str,
    fail_on: str,
    deep: bool,
    data: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    seed: int,
    form: str,
    output: Path | None,
    force: bool,
    quiet: bool,
    **settings: Any,
) -> int:
    """List the outlier channels of model files, layer by layer. Changes nothing, and runs no code from the files.

    Honest networks have outlier channels too. They are a reason to look closer, not a verdict.
    """
    from unbackdoor.api import scan
    from unbackdoor.atomic import check_target
    from unbackdoor.cli import say
    from unbackdoor.cli.progress import bar
    from unbackdoor.report.documents import together

    if form == "html" and len(paths) > 1:
        raise SettingError(f"--format html: expected one model, got {len(paths)}; scan them one by one")
    if output is not None:
        check_target(output, overwrite=force, inputs=paths)
    if not deep and (fail_on == "suspect" or data is not None or mean is not None or std is not None):
        raise SettingError("--fail-on suspect, --data, --mean and --std: expected --deep beside them")
    built = build_method(method, settings)
    announce(arch, quiet=quiet)
    reports: list[Report] = []
    failed: list[tuple[str, str]] = []
    deeper: dict[str, Any] = {"deep": deep, "data": data, "mean": mean, "std": std, "seed": seed}
    with bar("scanning", quiet=quiet or (len(paths) == 1 and not deep)) as update:
        for index, path in enumerate(paths):
            update(index, len(paths), path)
            told = _within(update, index, len(paths))
            try:
                reports.append(scan(path, arch=arch, method=built, key=key, example=example, progress=told, **deeper))
            except UnbackdoorError as error:
                if len(paths) == 1 and form != "sarif":
                    raise
                failed.append((path, str(error)))
                say(str(error))
    if reports or (failed and form in ("json", "sarif")):
        emit(together(reports, failed, form, single=len(paths) == 1), output, overwrite=force)
        if output is not None and not quiet:
            click.echo(f"{visible(str(output))}: written", err=True)
    if failed:
        return 2
    if not all(report.complete for report in reports):
        return 3
    findings = sum(_findings(report, fail_on) for report in reports)
    return 1 if findings else 0


def _within(update: Callable[..., None], index: int, of: int) -> Callable[[int, int, str], None]:
    """The progress of one file among several."""
    return lambda done, total, note: update(index * total + done, of * total, note)


def _findings(report: Report, level: str) -> int:
    suspects = len(report.suspects)
    outliers = report.pruned + report.immutable + suspects
    return {"outlier": outliers, "near": outliers + report.scaled, "suspect": suspects, "never": 0}[level]
