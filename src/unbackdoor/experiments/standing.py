"""How far a grid is: what is done, at work, failed and left, and how long that may take."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from unbackdoor.experiments.cell import Cell, Training, canonical
from unbackdoor.experiments.grid import Grid
from unbackdoor.experiments.store import Record, Store


@dataclass
class Standing:
    """How far a grid is.

    Attributes:
        total: cells.
        done: by kind of cell.
        failed: key -> (title, reason).
        left: titles of the cells that are neither.
        blocked: how many of those wait for a training that failed.
        seconds: what the finished cells took together.
        estimate: seconds that the others may take, where like cells are done; None where nothing is known.
    """

    total: int = 0
    done: dict[str, int] = field(default_factory=dict)
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    blocked: int = 0
    seconds: float = 0.0
    estimate: float | None = None


def standing(
    grid: Grid, store: Store, digests: dict[str, str] | None = None, known: Container[str] = frozenset()
) -> Standing:
    """How far a grid is, without reading any data set.

    Args:
        grid, store, known: as for `run_grid`.
        digests: name of a data set -> digest of its content, of those that were not used in this store.
    """
    found = Standing()
    names: dict[Cell, str] = {}
    counted: set[str] = set()
    took: dict[str, list[float]] = {}
    unknown = False
    left: list[Cell] = []
    elsewhere: dict[Cell, Record | None] = {}
    at_work = store.claimed()
    broken: set[str] = set()

    def has_failed(cell: Cell, failure: Record) -> None:
        found.failed[names[cell]] = (cell.title, failure["reason"])
        broken.add(names[cell])

    for cell, key, record, failure in store.outcomes(grid.cells, digests):
        name = names[cell] = key or f"{cell.kind} {canonical(cell.config)}"
        if name in counted:
            continue
        counted.add(name)
        if record is not None:
            found.done[cell.kind] = found.done.get(cell.kind, 0) + 1
            found.seconds += record["seconds"]
            took.setdefault(likeness(cell), []).append(record["seconds"])
        elif key is not None and key in known:
            elsewhere[cell] = failure
        elif failure is not None:
            has_failed(cell, failure)
        else:
            left.append(cell)
            if key in at_work:
                found.running.append(cell.title)
    found.total = len(counted)
    needed = {names[cell.needs] for cell in left if cell.needs is not None}
    for cell, failure in elsewhere.items():
        if names[cell] not in needed:
            found.done[cell.kind] = found.done.get(cell.kind, 0) + 1
        elif failure is not None:
            has_failed(cell, failure)
        else:
            left.append(cell)
    estimate = 0.0
    for cell in left:
        found.left.append(cell.title)
        found.blocked += cell.needs is not None and names[cell.needs] in broken
        like = took.get(likeness(cell))
        if like:
            estimate += sum(like) / len(like)
        else:
            unknown = True
    found.estimate = None if unknown else estimate
    return found


def likeness(cell: Cell) -> str:
    """Cells of the same likeness take about as long."""
    training = cell if isinstance(cell, Training) else cell.needs
    place = "" if training is None else f"{training.data} {training.arch} {training.recipe} {training.epochs}"
    if isinstance(cell, Training):
        return f"training {place} {(cell.attack or 'clean').partition(':')[0]}"
    method = getattr(cell, "method", "")
    return f"{cell.kind} {place} {method.partition(':')[0]} {getattr(cell, 'clean', None)}"
