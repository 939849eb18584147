"""The cells of a grid that are left: claimed, handed out as work, and settled when they come back."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Container, Iterator, Mapping

from unbackdoor.experiments.cell import Cell
from unbackdoor.experiments.grid import Grid
from unbackdoor.experiments.perform import Failed, Produced, Work
from unbackdoor.experiments.store import Record, Store


class Queue:
    """Those that can be run, and those that wait for a training.

    Cells of one key are one cell under several names: the first of them stands for all.

    Args:
        grid: whose cells.
        store: what is done; other drivers may share it.
        digests: of the data sets.
        known: keys of cells whose results are kept elsewhere, which are not done again; a training is, where a cell
            that is left needs its network.
        retry_failed: whether cells that failed are tried again.
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
        """Whether anything is left that can be run, or is at work."""
        return bool(self._ready or self._taken)

    def take(self, most: int) -> Iterator[tuple[str, Cell, Work | None]]:
        """Claim cells while fewer than `most` are at work: key, cell and work; no work where it was done since.

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
        """Keep what came back: "done" or "failed", the cell, and what to say of it.

        What waited for a cell that is done comes first: its data are at hand.
        """
        cell, stack = self._taken.pop(key)
        with stack:
            if isinstance(outcome, Failed):
                if outcome.cause == "cell":  # else it is no fault of the cell's, which stays left
                    self._store.fail(cell, key, outcome.reason)
                return "failed", cell, outcome.reason
            message = _summary(outcome.record)
            self._store.put(cell, key, outcome.record, outcome.files)
            self._store.clear_work(key)
        self._ready.extendleft(self._waiting.pop(key, []))
        return "done", cell, message

    def close(self) -> None:
        """Let go of what is at work."""
        for _, stack in self._taken.values():
            stack.close()
        self._taken.clear()


def _summary(record: Record) -> str:
    """A finished cell's rates in a few words."""
    rates = record["result"].get("rates")
    parts = []
    for name in ("acc", "asr"):
        rate = rates.get(name) if rates else None
        if rate is not None and rate["value"] is not None:
            parts.append(f"{name.upper()} {rate['value']:.2%}")
    return ", ".join([*parts, f"{record['seconds']:.1f} s"])
