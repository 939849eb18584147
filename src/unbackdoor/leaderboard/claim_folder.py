"""Claims on disk.

    FOLDER/GRID/grid.json      name, title, the paper's table, the keys of its cells and what the data sets held
    FOLDER/GRID/*.json         one claim each; a name is for readers and ends with the start of the cell's key

They are made by `unbackdoor bench report`, or written by whoever ran something elsewhere.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from msgspec.structs import asdict

from unbackdoor.errors import DataError, OutputError
from unbackdoor.leaderboard.claim_checks import Head, read_claim, read_head
from unbackdoor.leaderboard.claims import SCHEMA_VERSION, Claim, ClaimedGrid, file_name
from unbackdoor.records import pretty

GRID = "grid.json"


def read_grids(folder: str | Path, *, without: Container[str] = ()) -> list[ClaimedGrid]:
    """Every grid in a folder of claims, by name.

    Args:
        folder: of all of them, or of one.
        without: names of grids' folders that are passed over.

    Raises:
        DataError: there is none, or a file is no claim; it names the file and what is wrong with it.
    """
    heads = _heads(Path(folder))
    if not heads:
        raise DataError(f"{folder}: expected claims, as `unbackdoor bench report` writes them: no */{GRID} in it")
    grids = []
    for head in heads:
        if head.parent.name in without:
            continue
        grid = _read_grid(head)
        if len(heads) > 1 and head.parent.name != file_name(grid.name):
            raise DataError(f"{head}: expected the grid of its folder, {head.parent.name!r}, got {grid.name!r}")
        grids.append(grid)
    return grids


def read_digests(folder: str | Path) -> dict[str, str]:
    """Name of a data set -> digest of its content, of all grids in a folder of claims; nothing where it holds none.

    Raises:
        DataError: a grid.json is none, or two of them say otherwise of one data set.
    """
    root = Path(folder)
    return _agreed((str(head), read_head(head).data) for head in (_heads(root) if root.is_dir() else ()))


def check_digests(grids: Iterable[ClaimedGrid]) -> None:
    """DataError where two grids are about different versions of one data set."""
    _agreed((f"the grid {grid.name!r}", grid.data) for grid in grids)


def _agreed(places: Iterable[tuple[str, Mapping[str, str]]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for place, data in places:
        for name, digest in data.items():
            if found.setdefault(name, digest) != digest:
                raise DataError(f"{place}: is about another version of {name!r} than the grids beside it")
    return found


def merged(folder: str | Path, grid: ClaimedGrid) -> ClaimedGrid:
    """A grid with the claims that a folder holds beside its own; nothing is written.

    A claim that is there on the same cell is replaced, but not a result by a failure. Where not all of the grid's keys
    are known, those of the folder are taken as well: another machine had other data sets.

    Raises:
        DataError: a file that is there is no claim, or the folder is about another version of a data set.
    """
    root = Path(folder) / file_name(grid.name)
    if (root / GRID).exists():
        grid = _united(root / GRID, grid)
    claims = {_claim_file(claim): claim for claim in grid.claims}
    others: dict[tuple[str, str], tuple[Path, Claim]] = {}
    for path in sorted(root.glob("*.json")):
        new = claims.get(path.name)
        if path.name == GRID or (new is not None and new.failed is None):
            continue
        there = read_claim(path)
        if path.name != _claim_file(there) and _claim_file(there) in claims:
            raise DataError(f"{path}: is on a cell that is reported anew: name it {_claim_file(there)}, or remove it")
        _put(others, path, there)
        if new is None or there.failed is None:
            claims[_claim_file(there)] = there
    return replace(grid, claims=tuple(claims[name] for name in sorted(claims)))


def _united(head: Path, grid: ClaimedGrid) -> ClaimedGrid:
    there = read_head(head)
    data = _agreed(((f"the grid {grid.name!r}", grid.data), (str(head), there.data)))
    if len(grid.keys) >= grid.cells > 0 or not there.keys:
        return grid
    keys = tuple(dict.fromkeys((*grid.keys, *there.keys)))
    return replace(grid, keys=keys, cells=max(grid.cells, len(keys)), data=data)


def write_grid(folder: str | Path, grid: ClaimedGrid, *, only: Container[str] | None = None) -> None:
    """Write a grid's claims; others that are there are left.

    Args:
        folder: of all grids.
        grid: which.
        only: keys of the claims that are written; None takes all.

    Raises:
        OutputError: the folder cannot be written.
    """
    root = Path(folder) / file_name(grid.name)
    head = {"schema_version": SCHEMA_VERSION, **{name: getattr(grid, name) for name in Head.__struct_fields__}}
    try:
        root.mkdir(parents=True, exist_ok=True)
        for claim in grid.claims:
            if only is None or claim.key in only:
                _write(root / _claim_file(claim), claim.to_json())
        _write(root / GRID, pretty(head))
    except OSError as error:
        raise OutputError(f"{root}: claims cannot be written: {error.strerror or error}") from error


def _heads(root: Path) -> list[Path]:
    heads = sorted(root.glob(f"*/{GRID}"))
    if not heads:
        return sorted(root.glob(GRID))
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if not (folder / GRID).exists() and any(folder.glob("*.json")):
            raise DataError(f"{folder}: expected a {GRID} beside its claims")
    return heads


def _read_grid(head: Path) -> ClaimedGrid:
    claims: dict[tuple[str, str], tuple[Path, Claim]] = {}
    for path in sorted(head.parent.glob("*.json")):
        if path.name != GRID:
            _put(claims, path, read_claim(path))
    return ClaimedGrid(**asdict(read_head(head)), claims=tuple(claim for _, claim in claims.values()))


def _put(claims: dict[tuple[str, str], tuple[Path, Claim]], path: Path, claim: Claim) -> None:
    """Claims by cell; a second file on one cell would be counted as a second measurement."""
    place = (claim.key, claim.title)
    if place in claims:
        raise DataError(f"{path}: is on the same cell as {claims[place][0].name}: keep one of them")
    claims[place] = (path, claim)


def _claim_file(claim: Claim) -> str:
    return f"{file_name(claim.title)[:160]}-{claim.key[:8]}.json"


def _write(path: Path, content: str) -> None:
    """Claims can be made again at any time, so a killed run may leave half of one: no wait for the disk, no rename."""
    data = content.encode()
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)
