"""Claims on disk.

    FOLDER/GRID/grid.json      name, title, the paper's table, the keys of its cells and what the data sets held
    FOLDER/GRID/*.json         one claim each; a name is for readers and ends with the start of the cell's key

They are made by `unbackdoor bench report`, or written by whoever ran something elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

from unbackdoor.errors import DataError, OutputError
from unbackdoor.report.benchmark.claim_checks import GRID_FIELDS, read_claim, read_head
from unbackdoor.report.benchmark.claims import SCHEMA_VERSION, Claim, ClaimedGrid, file_name

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
    grids = [_read_grid(head) for head in heads if head.parent.name not in without]
    for head, grid in zip((h for h in heads if h.parent.name not in without), grids, strict=True):
        if len(heads) > 1 and head.parent.name != file_name(grid.name):
            raise DataError(f"{head}: expected the grid of its folder, {head.parent.name!r}, got {grid.name!r}")
    return grids


def read_digests(folder: str | Path) -> dict[str, str]:
    """Name of a data set -> digest of its content, of all grids in a folder of claims; nothing where it holds none.

    Raises:
        DataError: a grid.json is none, or two of them say otherwise of one data set.
    """
    found: dict[str, str] = {}
    for head in _heads(Path(folder)):
        for name, digest in read_head(head)["data"].items():
            if found.setdefault(name, digest) != digest:
                raise DataError(f"{head}: is about another version of {name!r} than the grids beside it")
    return found


def merged(folder: str | Path, grid: ClaimedGrid) -> ClaimedGrid:
    """A grid with the claims that a folder holds beside its own; nothing is written.

    A claim that is there on the same cell is replaced, but not a result by a failure.

    Raises:
        DataError: a file that is there is no claim.
    """
    root = Path(folder) / file_name(grid.name)
    claims = {_claim_file(claim): claim for claim in grid.claims}
    others: dict[tuple[str, str], tuple[Path, Claim]] = {}
    for path in sorted(root.glob("*.json")):
        new = claims.get(path.name)
        if path.name == GRID or (new is not None and new.failed is None):
            continue
        there = read_claim(path)
        if path.name != _claim_file(there) and _claim_file(there) in claims:
            raise DataError(f"{path}: is on the same cell as {_claim_file(there)}: keep one of them")
        _put(others, path, there)
        if new is None or there.failed is None:
            claims[_claim_file(there)] = there
    return replace(grid, claims=tuple(claims[name] for name in sorted(claims)))


def write_grid(folder: str | Path, grid: ClaimedGrid) -> None:
    """Write a grid's claims; others that are there are left.

    Raises:
        OutputError: the folder cannot be written.
    """
    root = Path(folder) / file_name(grid.name)
    head = {"schema_version": SCHEMA_VERSION, **{name: getattr(grid, name) for name in GRID_FIELDS}}
    try:
        root.mkdir(parents=True, exist_ok=True)
        for claim in grid.claims:
            _write(root / _claim_file(claim), claim.to_json())
        _write(root / GRID, json.dumps(head, indent=1, ensure_ascii=False) + "\n")
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
            claim = read_claim(path)
            _put(claims, path, claim)
    return ClaimedGrid(**read_head(head), claims=tuple(claim for _, claim in claims.values()))


def _put(claims: dict[tuple[str, str], tuple[Path, Claim]], path: Path, claim: Claim) -> None:
    """Claims by cell; a second file on one cell would be counted as a second measurement."""
    place = (claim.key, claim.title)
    if place in claims:
        raise DataError(f"{path}: is on the same cell as {claims[place][0].name}: keep one of them")
    claims[place] = (path, claim)


def _claim_file(claim: Claim) -> str:
    return f"{file_name(claim.title)[:160]}-{file_name(claim.key)[:8]}.json"


def _write(path: Path, content: str) -> None:
    """Claims can be made again at any time, so a killed run may leave half of one: no wait for the disk, no rename."""
    data = content.encode()
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)
