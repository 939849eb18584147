"""A grid's progress: the cells done, running, failed and left, and the time to go."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from unbackdoor.experiments.cell import Cell, Training, canonical
from unbackdoor.experiments.grid import Grid
from unbackdoor.experiments.store import Record, Store


@dataclass
class Standing:
    """A grid's progress.

    Attributes:
        total: number of cells.
        done: kind of cell -> number of cells done.
        failed: key -> (title, reason).
        left: titles of the cells that are neither done nor failed.
        running: titles of the cells that a process is working on.
        blocked: how many of the cells left wait for a training that failed.
        seconds: total time of the finished cells.
        estimate: seconds for the cells left, from similar finished cells; None if one has no similar cell.
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
    """A grid's progress, without reading any data set.

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
    """A text that is equal for cells that take about the same time."""
    training = cell if isinstance(cell, Training) else cell.needs
    place = "" if training is None else f"{training.data} {training.arch} {training.recipe} {training.epochs}"
    if isinstance(cell, Training):
        return f"training {place} {(cell.attack or 'clean').partition(':')[0]}"
    method = getattr(cell, "method", "")
    return f"{cell.kind} {place} {method.partition(':')[0]} {getattr(cell, 'clean', None)}"
