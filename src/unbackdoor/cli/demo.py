"""`unbackdoor demo`."""

from __future__ import annotations

from pathlib import Path

import click

from unbackdoor.cli.options import emit, force_option, quiet_option

PAGE = "demo-report.html"


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=PAGE, show_default=True, help="File for the page.")
@force_option
@quiet_option
def command(*, output: Path, force: bool, quiet: bool) -> None:
    """Repair a real backdoored network that comes with the package, and write a report page.

    Shows the rates on real images before and after LPP, CLP and best. No method is given data. The whole takes
    two to six minutes on two CPU cores, nearly all of it for best.
    """
    from unbackdoor import demo
    from unbackdoor.atomic import check_target
    from unbackdoor.cli.progress import bar

    replace = force or (output == Path(PAGE) and _is_page(output))  # a page of an earlier demo is no loss
    check_target(output, overwrite=replace)
    with bar("repairing", quiet=quiet) as update:
        found = demo.run(progress=update)
    emit(demo.page(found), output, overwrite=replace)
    record = found.record
    click.echo(
        f"{record['arch']}, {found.attack.title} on {record['rate']:.0%} of the training images; {len(found.images)} "
        f"test images, {sum(1 for label in found.images.labels.tolist() if label != found.attack.target)} of them "
        "triggered"
    )
    click.echo(demo.table(found))
    click.echo(demo.findings(found))
    click.echo(f"page: {output.resolve().as_uri()}")


def _is_page(path: Path) -> bool:
    """Whether a file is a page that this command wrote."""
    return path.is_file() and b"<title>Demo \xc2\xb7 unbackdoor</title>" in path.read_bytes()[:4096]
