"""A grid brought to its end: what is done is left, what is not is given to an engine, what comes back is stored."""

from __future__ import annotations

import contextlib
import shutil
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from unbackdoor.errors import OutputError
from unbackdoor.experiments.adopt import adopt_networks
from unbackdoor.experiments.cell import Cell, Training, canonical
from unbackdoor.experiments.engine import Engine, Failed
from unbackdoor.experiments.grid import Grid
from unbackdoor.experiments.perform import Work, data_digest
from unbackdoor.experiments.store import Record, Store

#: The least free space, in bytes, with which work is begun.
SPACE = 64 * 2**20


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


def meet_data(grid: Grid, store: Store, data_dir: str | None) -> dict[str, str]:
    """The digests of the grid's data sets, held against what the store was begun with.

    Raises:
        DataError: a data set was not found, or is another than the store's.
    """
    for name in grid.data_sets:
        store.meet(name, data_digest(name, data_dir))
    return store.digests()


def run_grid(
    grid: Grid,
    store: Store,
    engine: Engine,
    *,
    data_dir: str | None = None,
    device: str = "cpu",
    threads: int = 0,
    retry_failed: bool = False,
    known: Container[str] = frozenset(),
    told: Callable[[str, Cell, str], None] = lambda _event, _cell, _text: None,
) -> Standing:
    """Run what is left of a grid.

    Args:
        grid: what is to be run.
        store: what is done; several drivers may share it.
        engine: who does it.
        data_dir: folder of the data sets.
        device: where workers run.
        threads: of torch, for each worker; 0 leaves them as they are.
        retry_failed: whether cells that failed are tried again.
        known: keys of cells whose results are kept elsewhere, which are not done again; a training is, where a cell
            that is left needs its network.
        told: called with ("start", "done", "failed", "taken"), a cell, and what to say of it.

    Raises:
        DataError: a data set was not found, or is another than the store's; a network that the grid names is not there.
        OutputError: the store cannot be written.
    """
    digests = meet_data(grid, store, data_dir)
    adopt_networks(grid, store, digests)
    keys = {cell: cell.key(digests) for cell in grid.cells}
    queue = _Queue(store, keys, known, retry_failed=retry_failed)
    running: dict[str, tuple[Cell, contextlib.ExitStack]] = {}
    try:
        while queue.ready or running:
            while queue.ready and len(running) < engine.slots:
                cell = queue.ready.popleft()
                stack = contextlib.ExitStack()
                if not stack.enter_context(store.claim(keys[cell])):
                    stack.close()  # another driver is at it: its result is this one's as well
                    continue
                if store.has(cell, keys[cell]) and store.read(cell, keys[cell]) is not None:
                    stack.close()  # another driver has done it since
                    queue.done(cell)
                    told("taken", cell, "")
                    continue
                if not retry_failed and store.failure(keys[cell]) is not None:
                    stack.close()  # and failed at it
                    continue
                _check_space(store)
                told("start", cell, "")
                engine.submit(keys[cell], _work(cell, store, keys, digests, data_dir, device, threads))
                running[keys[cell]] = (cell, stack)
            for key, outcome in engine.finished():
                cell, stack = running.pop(key)
                with stack:
                    if isinstance(outcome, Failed):
                        if outcome.cause == "cell":  # else it is no fault of the cell's, which stays left
                            store.fail(cell, key, outcome.reason)
                        told("failed", cell, outcome.reason)
                        continue
                    store.put(cell, key, outcome.record, outcome.files)
                    store.clear_work(key)
                    told("done", cell, said_of(outcome.record))
                queue.done(cell)
    finally:
        for _, stack in running.values():
            stack.close()
        engine.close()
    return standing(grid, store, digests, known)


class _Queue:
    """The cells that are left: those that can be run, and those that wait for a training.

    Cells of one key are one cell under several names: the first of them stands for all.
    """

    def __init__(self, store: Store, keys: dict[Cell, str], known: Container[str], *, retry_failed: bool) -> None:
        self.ready: deque[Cell] = deque()
        self._keys = keys
        self._behind: dict[str, list[Cell]] = {}
        cells: dict[str, Cell] = {}
        for cell, key in keys.items():
            cells.setdefault(key, cell)
        finished = {key for key, cell in cells.items() if store.read(cell, key) is not None}
        failed = set() if retry_failed else {key for key in cells if store.failure(key) is not None}
        left = [cell for key, cell in cells.items() if key not in finished | failed and key not in known]
        needed = {keys[cell.needs] for cell in left if cell.needs is not None}
        for key, cell in cells.items():
            if key in finished | failed or (key in known and key not in needed):
                continue
            if retry_failed:
                store.forget_failure(key)
            if cell.needs is None or keys[cell.needs] in finished:
                self.ready.append(cell)
            else:
                self._behind.setdefault(keys[cell.needs], []).append(cell)

    def done(self, cell: Cell) -> None:
        """What waited for it can be run, and comes first: its data are at hand."""
        self.ready.extendleft(reversed(self._behind.pop(self._keys[cell], [])))


def _work(
    cell: Cell,
    store: Store,
    keys: dict[Cell, str],
    digests: dict[str, str],
    data_dir: str | None,
    device: str,
    threads: int,
) -> Work:
    files: dict[str, bytes] = {}
    before = None
    if cell.needs is not None:
        folder = store.folder(cell.needs, keys[cell.needs])
        record = store.read(cell.needs, keys[cell.needs])
        assert record is not None
        before = record["result"]["rates"]
        files = {name: (folder / name).read_bytes() for name in record["files"]}
    return Work(cell, files, before, data_dir, digests, str(store.work_folder(keys[cell])), device, threads)


def said_of(record: Record) -> str:
    """A finished cell's rates in a few words."""
    rates = record["result"].get("rates")
    parts = []
    for name in ("acc", "asr"):
        rate = rates.get(name) if rates else None
        if rate is not None and rate["value"] is not None:
            parts.append(f"{name.upper()} {rate['value']:.2%}")
    return ", ".join([*parts, f"{record['seconds']:.1f} s"])


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


def _check_space(store: Store) -> None:
    free = shutil.disk_usage(store.root).free
    if free < SPACE:
        raise OutputError(
            f"{store.root}: {free / 2**20:.0f} MB are free on its disk, expected {SPACE / 2**20:.0f} at least; what is "
            "done is kept: make room, and give the same command again"
        )
