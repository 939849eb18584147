"""Run a grid: cells that are not done are given to an engine, and their results are stored."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import Any

from unbackdoor.experiments.adopt import adopt_networks
from unbackdoor.experiments.cell import Cell, Training
from unbackdoor.experiments.data_sets import check_data
from unbackdoor.experiments.engine import Engine
from unbackdoor.experiments.grid import Grid
from unbackdoor.experiments.queue import Queue
from unbackdoor.experiments.standing import Standing, standing
from unbackdoor.experiments.store import Store
from unbackdoor.findings import read_evaluation
from unbackdoor.leaderboard.tables import ESTABLISHED


def part_of(grid: Grid, store: Store, digests: Mapping[str, str], only: str) -> Grid:
    """The part of a grid whose networks are in a store.

    Args:
        grid, store: as for `run_grid`.
        digests: name of a data set -> digest of its content, of those that were not used in this store.
        only: "trained" takes all of them, "established" those whose attack took, and clean ones.
    """
    there = {
        cell
        for cell, _, record, _ in store.outcomes((cell for cell in grid.cells if isinstance(cell, Training)), digests)
        if record is not None and (only == "trained" or _took(record["result"]["rates"]))
    }
    return replace(grid, cells=tuple(cell for cell in grid.cells if cell in there or cell.needs in there))


def _took(rates: Mapping[str, Any]) -> bool:
    asr = read_evaluation(rates).asr
    return asr is None or 100 * (asr.value or 0.0) >= ESTABLISHED


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
    on_event: Callable[[str, Cell, str], None] = lambda _event, _cell, _text: None,
) -> Standing:
    """Run the cells of a grid that are not done.

    Args:
        grid: the grid.
        store: the results; several processes may share it.
        engine: runs the cells.
        data_dir: folder of the data sets.
        device: where workers run.
        threads: torch threads of each worker; 0 keeps torch's default.
        retry_failed: whether failed cells are tried again.
        known: keys of cells whose results are elsewhere. They are skipped, but a training is run if another cell needs
            its network.
        on_event: called with "start", "done", "failed" or "taken" (by another process), a cell, and a message.

    Raises:
        DataError: a data set was not found or differs from the store's, or a network that the grid names is missing.
        OutputError: the store cannot be written.
    """
    digests = check_data(grid, store, data_dir)
    adopt_networks(grid, store, digests)
    queue = Queue(grid, store, digests, known, retry_failed=retry_failed)
    try:
        while queue:
            for key, cell, work in queue.take(engine.slots):
                on_event("taken" if work is None else "start", cell, "")
                if work is not None:
                    engine.submit(key, replace(work, data_dir=data_dir, device=device, threads=threads))
            for key, outcome in engine.finished():
                on_event(*queue.settle(key, outcome))
    finally:
        queue.close()
        engine.close()
    return standing(grid, store, digests, known)
