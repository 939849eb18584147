"""`unbackdoor bench run | status | report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from unbackdoor.cli.options import announce, quiet_option

grid_argument = click.argument("grid", type=click.Path(path_type=Path))
store_option = click.option(
    "--store",
    "store_path",
    type=click.Path(path_type=Path),
    default=Path("bench-store"),
    show_default=True,
    help="Folder for the results.",
)
claims_option = click.option(
    "--claims",
    "claims_path",
    type=click.Path(path_type=Path),
    help="Folder of claims, as `bench report` writes them. Cells that have a claim are skipped.",
)


@click.group()
def command() -> None:
    """Run a grid of attacks, rates, data sets, networks, recipes, seeds, defences and clean shares (docs/bench.md)."""


@command.command(
    epilog="Exit codes: 0 every cell is done; 1 some failed, or are running elsewhere; 2 error, or refused. If a run "
    "was stopped, the same command resumes it."
)
@grid_argument
@store_option
@claims_option
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="What runs the cells."
)
@click.option("--address", help="Address of a Ray cluster. Default: one is started on this machine.")
@click.option("--cpus", type=click.FloatRange(min=0), default=1, show_default=True, help="CPUs per cell (ray).")
@click.option(
    "--gpus",
    type=click.FloatRange(min=0),
    default=0,
    show_default=True,
    help="GPUs per cell (ray); with 0.25, four cells share one.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="torch threads per cell; 0 keeps torch's default.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data sets ($UNBACKDOOR_DATA).")
@click.option("--retry-failed", is_flag=True, help="Try failed cells again.")
@click.option(
    "--only",
    type=click.Choice(["trained", "established"]),
    help="Train nothing: take the networks that are in the store, or of those the clean ones and those whose attack's "
    "ASR is at least 80 %.",
)
@click.option("--dry-run", is_flag=True, help="Print what would run, what is done, and how long the rest may take.")
@quiet_option
def run(
    *,
    grid: Path,
    store_path: Path,
    claims_path: Path | None,
    engine: str,
    address: str | None,
    cpus: float,
    gpus: float,
    device: str,
    threads: int,
    data_dir: Path | None,
    retry_failed: bool,
    only: str | None,
    dry_run: bool,
    quiet: bool,
) -> int:
    """Run the cells of a grid that are not done yet."""
    from unbackdoor.cli.progress import bar
    from unbackdoor.experiments import Cell, Local, Store, Training, part_of, read_grid, run_grid, standing
    from unbackdoor.metrics import check_device

    cells = read_grid(grid)
    known, digests = _known(claims_path)
    if dry_run:
        store = Store(store_path, make=False) if store_path.exists() else Store.empty(store_path)
        cells = cells if only is None else part_of(cells, store, digests, only)
        _print_plan(cells, standing(cells, store, digests, known))
        return 0
    check_device(device)
    store = Store(store_path)
    cells = cells if only is None else part_of(cells, store, digests, only)
    for arch in dict.fromkeys(cell.arch for cell in cells.cells if isinstance(cell, Training)):
        announce(arch, quiet=quiet)

    def on_event(event: str, cell: Cell, text: str) -> None:
        if not quiet and event != "start":
            click.echo(f"{event:<6} {cell.title}" + (f": {text}" if text else ""), err=True)

    with bar("cell", quiet=quiet) as update:
        if engine == "ray":
            from unbackdoor.experiments.on_ray import OnRay

            worker: Any = OnRay(address, cpus=cpus, gpus=gpus)
        else:
            worker = Local(update)
        done = run_grid(
            cells,
            store,
            worker,
            data_dir=None if data_dir is None else str(data_dir),
            device=device,
            threads=threads,
            retry_failed=retry_failed,
            known=known,
            on_event=on_event,
        )
    click.echo(_line(done))
    return 0 if sum(done.done.values()) == done.total else 1


@command.command()
@grid_argument
@store_option
@claims_option
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def status(*, grid: Path, store_path: Path, claims_path: Path | None, form: str) -> None:
    """Show a grid's progress: cells done, running, failed and left, and the time to go."""
    import dataclasses

    from unbackdoor.experiments import Store, read_grid, standing

    cells = read_grid(grid)
    known, digests = _known(claims_path)
    fresh = claims_path is not None and not store_path.exists()
    store = Store.empty(store_path) if fresh else Store(store_path, make=False)
    found = standing(cells, store, digests, known)
    if form == "json":
        click.echo(json.dumps({"schema_version": 1, "grid": cells.name, **dataclasses.asdict(found)}, indent=2))
        return
    click.echo(_line(found))
    for title in found.running:
        click.echo(f"running  {title}")
    for title, reason in found.failed.values():
        click.echo(f"failed   {title}: {reason}")


@command.command(
    epilog="Writes index.html, tables.md, tables.tex, results.csv, figures/*.svg, and claims/ with one JSON file per "
    "result. The page shows every claim in claims/, including those of earlier reports. SOURCE may be a folder of "
    "claims instead of a grid; that needs only Python and matplotlib. Exit codes: 0 written; 2 error, or refused."
)
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE...")
@store_option
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("bench-report"),
    show_default=True,
    help="Folder to write to.",
)
@click.option("--title", default="Benchmark", show_default=True, help="Title of the page.")
@quiet_option
def report(*, sources: tuple[Path, ...], store_path: Path, output: Path, title: str, quiet: bool) -> None:
    """Write tables, figures and one offline page of grids' results, beside the paper's figures."""
    from unbackdoor.leaderboard import check_folder, read_digests, read_grids, write_report
    from unbackdoor.leaderboard.folder import CLAIMS

    check_folder(output)
    digests = read_digests(output / CLAIMS)
    grids = []
    for source in sources:
        if source.is_dir():
            grids += read_grids(source)
        else:
            from unbackdoor.experiments import Store, publish, read_grid

            grids.append(publish(read_grid(source), Store(store_path, make=False), digests))
    shown = write_report(output, grids, title=title)
    if not quiet:
        for grid in shown:
            failed = f", {len(grid.failed):,} failed" if grid.failed else ""
            click.echo(f"{grid.name}: {grid.done:,} of {grid.cells:,} cells{failed}", err=True)
    click.echo(output / "index.html")


def _known(claims: Path | None) -> tuple[set[str], dict[str, str]]:
    """Keys of the cells that are done in a folder of claims, and the digests of their data sets.

    Raises:
        DataError: the folder holds no claims, or a file in it is not a claim.
    """
    from unbackdoor.leaderboard import done_in, read_digests, read_grids

    return (set(), {}) if claims is None else (done_in(read_grids(claims)), read_digests(claims))


def _line(found: Any) -> str:
    done = sum(found.done.values())
    parts = [f"{done:,} of {found.total:,} cells done"]
    parts += [f"{len(found.failed):,} failed"] if found.failed else []
    parts += [f"{len(found.running):,} running"] if found.running else []
    if found.left:
        blocked = f" ({found.blocked:,} need a training that failed)" if found.blocked else ""
        go = "time to go unknown" if found.estimate is None else f"about {_duration(found.estimate)} to go"
        parts.append(f"{len(found.left):,} left{blocked}, {go}")
    parts.append(f"{_duration(found.seconds)} spent")
    return "; ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _print_plan(cells: Any, found: Any) -> None:
    """Print the state of every cell, and the least memory that a cell needs."""
    from unbackdoor.experiments.cell import canonical

    left, failed = set(found.left), {title for title, _ in found.failed.values()}
    once = {(cell.kind, canonical(cell.config)): cell for cell in reversed(cells.cells)}  # the first of equal cells
    for cell in reversed(once.values()):
        state = "left" if cell.title in left else "failed" if cell.title in failed else "done"
        click.echo(f"{state:<6} {cell.kind:<11} {cell.title}")
    click.echo(_line(found))
    need = _memory(cells)
    click.echo(
        f"a cell needs at least {need / 2**30:.1f} GB for data, weights, gradients and momentum, plus activations"
    )


def _memory(cells: Any) -> float:
    """Bytes for the largest training set, clean and poisoned, and four copies of the largest network."""
    from unbackdoor.data import dataset_spec
    from unbackdoor.experiments import Training
    from unbackdoor.models import parse_arch

    sizes = {"cifar10": 60_000, "cifar100": 60_000, "gtsrb": 51_839, "tiny_imagenet": 110_000}
    most = 0.0
    seen = {(cell.data, cell.config["arch"]) for cell in cells.cells if isinstance(cell, Training)}
    for data, arch in sorted(seen):
        if parse_arch(arch).runs_code:  # its file is not run only to learn its size
            continue
        spec = dataset_spec(data)
        images = sizes.get(data, 0) * 3 * spec.size**2
        weights = sum(p.numel() for p in parse_arch(arch).build(device="meta").parameters())
        most = max(most, 2.0 * images + 16.0 * weights)
    return most
