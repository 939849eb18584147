"""A report as a folder: the page, the tables, the figures and the claims that they are made of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from unbackdoor.atomic import atomic_write
from unbackdoor.errors import DataError, OutputError
from unbackdoor.leaderboard import site, text
from unbackdoor.leaderboard.claim_folder import GRID, check_digests, merged, read_grids, write_grid
from unbackdoor.leaderboard.claims import ClaimedGrid, file_name
from unbackdoor.leaderboard.plots import figures
from unbackdoor.leaderboard.tables import Sheet

CLAIMS, PAGE = "claims", "index.html"


def check_folder(folder: str | Path) -> None:
    """That a report may be written there.

    Raises:
        OutputError: it is no folder, or holds something else.
    """
    root = Path(folder)
    if not root.exists():
        return
    if not root.is_dir():
        raise OutputError(f"{root}: expected a folder for the report, got a file")
    if any(root.iterdir()) and not any((root / CLAIMS).glob(f"*/{GRID}")):
        raise OutputError(f"{root}: holds other files than a report: name a new folder, or one of an earlier report")


def write_report(folder: str | Path, grids: Iterable[ClaimedGrid], *, title: str = "Benchmark") -> list[ClaimedGrid]:
    """Write claims, then the page, tables and figures of all claims in the folder; returns what they show.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
        DataError: a claim that was there is none, or two of the grids have one name.
        MethodError: matplotlib is not installed.
    """
    check_folder(folder)
    root = Path(folder)
    given = list(grids)
    names = [file_name(grid.name) for grid in given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two of the grids are named {twice!r}; the claims of one would replace the other's")
    together = [merged(root / CLAIMS, grid) for grid in given]
    others = read_grids(root / CLAIMS, without=names) if (root / CLAIMS).exists() else []
    shown = sorted([*together, *others], key=lambda grid: file_name(grid.name))
    check_digests(shown)
    sheets = sorted((Sheet.of(grid) for grid in shown), key=lambda sheet: bool(sheet.variants))  # sweeps last
    drawn = {sheet.grid.name: list(figures(sheet)) for sheet in sheets}
    files = {
        PAGE: site.render(sheets, drawn, title=title),
        "tables.md": text.markdown(sheets),
        "tables.tex": text.latex(sheets),
        "results.csv": text.table_csv(shown),
    }
    for found in drawn.values():
        for figure in found:
            files[f"figures/{file_name(figure.name)}.svg"] = figure.svg + "\n"
    for grid, whole in zip(given, together, strict=True):
        write_grid(root / CLAIMS, whole, only={claim.key for claim in grid.claims})
    try:
        (root / "figures").mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{root}: cannot be written: {error.strerror or error}") from error
    for name, content in files.items():
        with atomic_write(root / name, overwrite=True, durable=False) as stream:
            stream.write(content.encode())
    return shown
