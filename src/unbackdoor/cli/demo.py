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

    Shows the rates on real images before and after.
    """
    from unbackdoor import demo
    from unbackdoor.atomic import check_target
    from unbackdoor.cli.progress import bar

    replace = force or (output == Path(PAGE) and _is_page(output))  # a page of an earlier demo is no loss
    check_target(output, overwrite=replace)
    with bar("evaluating", quiet=quiet) as update:
        found = demo.run(update)
    emit(demo.page(found), output, overwrite=replace)
    record = found.record
    click.echo(
        f"{record['arch']}, {record['attack']['name']} on {record['poisoned_images']:,} of "
        f"{record['data']['train_images']:,} training images; {len(found.images)} test images, "
        f"{sum(1 for label in found.images.labels.tolist() if label != found.attack.target)} of them triggered"
    )
    click.echo(demo.table(found))
    lpp = found.contenders[1].report
    if lpp is not None and lpp.classifier is not None:
        click.echo(f"LPP guessed the attacker's class: {lpp.classifier.guessed_class} (it is {found.attack.target})")
    click.echo(f"page: {output.resolve().as_uri()}")


def _is_page(path: Path) -> bool:
    """Whether a file is a page that this command wrote."""
    return path.is_file() and b"<title>Demo \xc2\xb7 unbackdoor</title>" in path.read_bytes()[:4096]
