"""The Ray engine: the same results, workers and nodes that are lost, and how fast it schedules."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from bench_grids import probes, toy
from unbackdoor.experiments import Local, Store, compact, run_grid, standing
from unbackdoor.experiments.cell import Probe
from unbackdoor.experiments.grid import Grid

ray = pytest.importorskip("ray")
pytest.importorskip("pyarrow")
pytestmark = pytest.mark.slow


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNBACKDOOR_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def cluster():
    """Two nodes of one CPU each, simulated on this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_the_same_table_as_in_process_although_workers_are_killed(cache: Path, cluster) -> None:
    """Every second or so one of the workers is killed; then a node goes."""
    from unbackdoor.experiments.on_ray import OnRay

    grid = toy(cache)
    quiet = Store(cache / "quiet")
    run_grid(grid, quiet, Local())
    compact(grid, quiet, cache / "quiet.parquet")
    engine, store = OnRay(cluster.address), Store(cache / "ray")
    over = threading.Event()
    kills = []

    def kill() -> None:
        import psutil

        while not over.wait(1.5):
            workers = [
                p for p in psutil.process_iter(["cmdline"]) if "ray::_remote" in " ".join(p.info["cmdline"] or [])
            ]
            if workers and len(kills) < 30:
                os.kill(workers[0].pid, signal.SIGKILL)
                kills.append(workers[0].pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        found = run_grid(grid, store, engine, data_dir=None)
        for _ in range(40):  # what was lost more often than Ray tries is tried again; there are thirty kills at most
            if sum(found.done.values()) == 12:
                break
            found = run_grid(grid, store, OnRay(cluster.address), retry_failed=True)
    finally:
        over.set()
        thread.join()
    assert sum(standing(grid, store).done.values()) == 12
    assert kills
    compact(grid, store, cache / "ray.parquet")
    assert (cache / "ray.parquet").read_bytes() == (cache / "quiet.parquet").read_bytes()


def test_a_node_that_is_lost(cache: Path, cluster) -> None:
    from unbackdoor.experiments.on_ray import OnRay

    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    grid, store = probes(40, seconds=0.2), Store(cache / "store")
    timer = threading.Timer(2, lambda: cluster.remove_node(node, allow_graceful=False))
    timer.start()
    found = run_grid(grid, store, OnRay(cluster.address))
    timer.join()
    assert sum(found.done.values()) == 40


def test_failures_come_back_as_reasons(cache: Path, cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    from unbackdoor.experiments.on_ray import OnRay

    grid = Grid("g", "g", "", (Probe(number=0, seconds=-1.0), Probe(number=1)))
    found = run_grid(grid, Store(cache / "store"), OnRay(cluster.address))
    assert sum(found.done.values()) == 1
    ((_, reason),) = found.failed.values()
    assert "ValueError" in reason
    assert time.monotonic() > 0
