"""An engine on Ray: many GPUs, many machines, fractions of a GPU, and retries for lost workers."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from typing import Any

from unbackdoor.errors import MethodError, first_line
from unbackdoor.experiments.engine import Engine, attempt
from unbackdoor.experiments.perform import Failed, Produced, Work

#: How often a piece of work is retried when its worker or node is lost.
RETRIES = 3


class OnRay(Engine):
    """Cells as Ray tasks; results come back as bytes, so that machines need not share a disk.

    Args:
        address: of a running cluster; None starts one on this machine, "auto" finds one.
        cpus: CPUs per cell.
        gpus: GPUs per cell; 0.25 lets four cells share one.
        ahead: how many cells are queued for each that the cluster can run at once.

    Raises:
        MethodError: Ray is not installed.
    """

    def __init__(self, address: str | None = None, *, cpus: float = 1, gpus: float = 0, ahead: int = 16) -> None:
        try:
            import ray
        except ImportError as error:
            raise MethodError(
                "--engine ray needs Ray, which is not installed: pip install 'unbackdoor[ray]'"
            ) from error
        self._ray = ray
        self._own = not ray.is_initialized()
        if self._own:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, configure_logging=False)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        room = resources.get("CPU", 1) / cpus if cpus else float("inf")
        if gpus:
            room = min(room, resources.get("GPU", 0) / gpus)
        self.slots = max(1, int(min(room, 10_000) * ahead))
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_remote)
        self._running: dict[Any, str] = {}

    def submit(self, key: str, work: Work) -> None:
        self._running[self._task.remote(work)] = key

    def finished(self) -> Iterator[tuple[str, Produced | Failed]]:
        if not self._running:
            return
        ready, _ = self._ray.wait(list(self._running), num_returns=1)
        more, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for reference in {*ready, *more}:
            key = self._running.pop(reference)
            try:
                yield key, self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                yield key, Failed(f"its worker was lost {RETRIES + 1} times: {first_line(error)}")

    def close(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        if self._own:
            self._ray.shutdown()


def _remote(work: Work) -> Produced | Failed:
    """Run on a worker, with a temporary folder for unfinished work."""
    with tempfile.TemporaryDirectory(prefix="unbackdoor-") as folder:
        return attempt(dataclasses.replace(work, folder=folder))
