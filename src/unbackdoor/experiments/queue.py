"""The cells of a grid that are not done: claimed, handed out as work, and stored when finished."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Container, Iterator, Mapping

from unbackdoor.experiments.cell import Cell
from unbackdoor.experiments.grid import Grid
from unbackdoor.experiments.perform import Failed, Produced, Work
from unbackdoor.experiments.store import Record, Store


class Queue:
    """The cells that can be run, and those that wait for a training.

    Cells with the same key are the same cell under several names; only the first is run.

    Args:
        grid: the grid.
        store: the results; other processes may share it.
        digests: name of a data set -> digest of its content.
        known: keys of cells whose results are elsewhere. They are skipped, but a training is run if another cell needs
            its network.
        retry_failed: whether failed cells are tried again.
    """

    def __init__(
        self,
        grid: Grid,
        store: Store,
        digests: Mapping[str, str],
        known: Container[str] = frozenset(),
        *,
        retry_failed: bool = False,
    ) -> None:
        self._store = store
        self._digests = digests
        self._retry_failed = retry_failed
        self._keys = keys = {cell: cell.key(digests) for cell in grid.cells}
        self._ready: deque[Cell] = deque()
        self._waiting: dict[str, deque[Cell]] = {}  # last first
        self._taken: dict[str, tuple[Cell, contextlib.ExitStack]] = {}
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
                self._ready.append(cell)
            else:
                self._waiting.setdefault(keys[cell.needs], deque()).appendleft(cell)

    def __bool__(self) -> bool:
        """Whether any cell can be run or is running."""
        return bool(self._ready or self._taken)

    def take(self, most: int) -> Iterator[tuple[str, Cell, Work | None]]:
        """Claim cells until `most` are running; yields key, cell, and work (None if another process has done it).

        Raises:
            OutputError: the store's disk is full.
        """
        while self._ready and len(self._taken) < most:
            cell = self._ready.popleft()
            key = self._keys[cell]
            stack = contextlib.ExitStack()
            state = stack.enter_context(self._store.begin(cell, key, retry_failed=self._retry_failed))
            if state == "left":
                self._taken[key] = (cell, stack)
                before, files = self._store.trained(cell.needs, self._keys[cell.needs]) if cell.needs else (None, {})
                yield key, cell, Work(cell, files, before, self._digests, str(self._store.work_folder(key)))
                continue
            stack.close()
            if state == "done":
                self._ready.extendleft(self._waiting.pop(key, []))
                yield key, cell, None

    def settle(self, key: str, outcome: Produced | Failed) -> tuple[str, Cell, str]:
        """Store an outcome; returns "done" or "failed", the cell, and a message.

        Cells that waited for it come next, while its data set is loaded.
        """
        cell, stack = self._taken.pop(key)
        with stack:
            if isinstance(outcome, Failed):
                if outcome.cause == "cell":  # otherwise the cell is not at fault, and stays to be done
                    self._store.fail(cell, key, outcome.reason)
                return "failed", cell, outcome.reason
            message = _summary(outcome.record)
            self._store.put(cell, key, outcome.record, outcome.files)
            self._store.clear_work(key)
        self._ready.extendleft(self._waiting.pop(key, []))
        return "done", cell, message

    def close(self) -> None:
        """Release the claims on running cells."""
        for _, stack in self._taken.values():
            stack.close()
        self._taken.clear()


def _summary(record: Record) -> str:
    """A finished cell's rates and time, as a short message."""
    rates = record["result"].get("rates")
    parts = []
    for name in ("acc", "asr"):
        rate = rates.get(name) if rates else None
        if rate is not None and rate["value"] is not None:
            parts.append(f"{name.upper()} {rate['value']:.2%}")
    return ", ".join([*parts, f"{record['seconds']:.1f} s"])
