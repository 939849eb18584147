"""How fast engines are with cells that do nothing, and `bench status` and `bench report` with 10,000 finished records.

The records are made up, in the form in which a worker returns them; the commands are fresh processes.

Each command is timed as a whole, `import torch` included, which stands beside them; "report (again)" finds its claims
written, and "report (claims)" is made of them alone, which needs no torch.

    python benchmarks/grid_speed.py [--cells 10000] [--out benchmarks/grid_speed.json]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scan_speed import run
from unbackdoor.experiments import Engine, Grid, Local, Probe, Store, Training, read_grid, run_grid
from unbackdoor.experiments.cell import VERSIONS, Cell, Repair, method_origins
from unbackdoor.experiments.on_ray import OnRay
from unbackdoor.experiments.perform import SCHEMA_VERSION
from unbackdoor.findings import defence_effectiveness
from unbackdoor.provenance import circumstances, processor

#: Cells a second; seconds.
RATE, SECONDS = 200, 3.0
COMMANDS = "status", "report", "report (again)", "report (claims)"

GRID = """
name = "large"
title = "Ten thousand cells"
paper = "T1"
[[runs]]
data = "cifar10"
arch = "resnet18"
attack = ["badnet", "bpp", "inputaware", "wanet"]
rate = [0.1, 0.05, 0.01]
seed = {seeds}
method = ["none", "ft", "fp", "nad", "ibau", "anp", "bnp", "rnp", "clp", "lpp"]
clean = 0.05
clean_seed = [0, 1, 2]
"""
DIGEST = "0" * 64
#: Of GRID for each training seed: 12 trainings, 12 x (2 + 7 x 3) repairs.
A_SEED = 12 * 24


def scheduled(engine: Callable[[], Engine], count: int) -> tuple[float, float]:
    """Cells a second from the first that came back to the last; seconds until the first."""
    grid = Grid("probes", "probes", "", tuple(Probe(number=n) for n in range(count)))
    came: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = run_grid(
            grid, Store(folder), engine(), on_event=lambda e, *_: e == "done" and came.append(time.perf_counter())
        )
    if sum(found.done.values()) != count:
        sys.exit(f"expected {count} cells, got {found.done}")
    return (count - 1) / (came[-1] - came[0]), came[0] - start


def fill(store: Store, grid: Grid) -> None:
    """A record for every cell."""
    draw = random.Random(0)
    store.meet("cifar10", DIGEST)
    about, digests = circumstances("cpu"), store.digests()
    for cell in grid.cells:
        store.put(cell, cell.key(digests), record(cell, draw, about), files(cell))


def files(cell: Cell) -> dict[str, bytes]:
    """As small as a network of width 16 in bfloat16 is."""
    return {"model.safetensors": b"\0" * 1_400_000} if isinstance(cell, Training) else {}


def record(cell: Cell, draw: random.Random, about: dict[str, Any]) -> dict[str, Any]:
    """As `perform` makes them, with rates that were drawn."""

    def rate(low: float, high: float, total: int) -> dict[str, Any]:
        hits = round(draw.uniform(low, high) * total)
        return {"value": hits / total, "hits": hits, "total": total}

    before = {"acc": rate(0.9, 0.95, 10_000), "asr": rate(0.9, 1, 9_000), "ra": rate(0, 0.1, 9_000)}
    result: dict[str, Any] = {"rates": before}
    if isinstance(cell, Repair):
        after = {"acc": rate(0.8, 0.9, 10_000), "asr": rate(0, 0.3, 9_000), "ra": rate(0.6, 0.9, 9_000)}
        result = {
            "rates": after,
            "before": before,
            "der": defence_effectiveness(
                acc_before=before["acc"]["value"],
                acc_after=after["acc"]["value"],
                asr_before=before["asr"]["value"],
                asr_after=after["asr"]["value"],
            ),
            "changed": True,
            "pruned": 8,
            "scaled": 70,
            "origins": method_origins(cell.method),
            "method_seconds": draw.uniform(0.01, 60),
            "layers": None,
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": cell.kind,
        "config": cell.config,
        "epoch": VERSIONS[cell.kind],
        "data_digest": DIGEST,
        "result": result,
        "seconds": draw.uniform(1, 100),
        "commit": None,
        **about,
    }


def seconds_of(command: list[str]) -> float:
    """The median of three runs."""
    return statistics.median(run(command) for _ in range(3))


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    importing = seconds_of([sys.executable, "-c", "import torch"])
    print(f"{'import torch':<15} {importing:6.2f} s")
    found: dict[str, Any] = {"cells": arguments.cells, "import_torch": round(importing, 2)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.toml")
        path.write_text(GRID.format(seeds=list(range(-(-arguments.cells // A_SEED)))))
        grid, store = read_grid(path), Store(Path(folder, "store"))
        fill(store, grid)
        found["records"] = len(grid.cells)
        tool = str(Path(sys.executable).with_name("unbackdoor"))
        report = [tool, "bench", "report", str(path), "--store", str(store.root), "-o", folder + "/report"]
        found["status"] = round(seconds_of([tool, "bench", "status", str(path), "--store", str(store.root)]), 2)
        found["report"] = round(run(report), 2)
        found["report (again)"] = round(seconds_of(report), 2)
        claims = [tool, "bench", "report", folder + "/report/claims", "-o", folder + "/report"]
        found["report (claims)"] = round(seconds_of(claims), 2)
        for name in COMMANDS:
            print(f"{name:<15} {found[name]:6.2f} s for {len(grid.cells):,} records")
    for name, engine in (("local", Local), ("ray", OnRay)):
        rate, first = scheduled(engine, arguments.cells)
        found[name] = {"cells_per_second": round(rate), "seconds_until_the_first": round(first, 2)}
        print(f"{name:<8} {rate:8,.0f} cells/s, the first after {first:.2f} s")
    slow = [name for name in ("local", "ray") if found[name]["cells_per_second"] < RATE]
    slow += [name for name in COMMANDS if found[name] > SECONDS]
    print(f"behind the target: {', '.join(slow)}" if slow else "every target is met")
    found |= {
        "targets": {"cells_per_second": RATE, "seconds": SECONDS},
        "cores": os.cpu_count(),
        "processor": processor(),
        "load_before": round(load, 2),
        "versions": {name: importlib.metadata.version(name) for name in ("ray", "torch", "matplotlib")},
    }
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
