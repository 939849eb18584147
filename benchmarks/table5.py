"""Table 5 of LPP's paper on this machine: what each method takes on the same network, at its defaults.

The zoo's BadNets network (ResNet-18 of width 16) and 500 training images of CIFAR-10 for all five methods; a ResNet-18
of full width with random weights for those that take seconds at most. One torch thread, the methods in turns, whole
calls: copies, checks and the layer graph included.

    python benchmarks/table5.py [--data-dir DIR] [--rounds 3]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
from pathlib import Path

import torch
from torch import nn

from defence_speed import IMAGES, NETWORK, run, seconds
from speed import network
from unbackdoor.api import load_model
from unbackdoor.data import LabelledImages, clean_subset, load_dataset
from unbackdoor.defences.table import parse_method
from unbackdoor.leaderboard.paper import METHODS, ORDER, printed_seconds
from unbackdoor.provenance import processor

#: Of these a call takes seconds at most, also at full width.
QUICK = tuple(ORDER[:3])


def call(name: str, model: nn.Module, images: LabelledImages) -> float:
    """Seconds of one call."""
    return seconds(lambda: run(parse_method(name), model, images))


def medians(names: tuple[str, ...], model: nn.Module, images: LabelledImages, rounds: int) -> dict[str, float]:
    """Method -> seconds; the methods alternate."""
    for name in QUICK:
        call(name, model, images)  # warm-up
    took = [{name: call(name, model, images) for name in names} for _ in range(rounds)]
    return {name: statistics.median(one[name] for one in took) for name in names}


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    images = clean_subset(load_dataset("cifar10", "train", arguments.data_dir), count=IMAGES, seed=0).data
    found = {
        "width 64": medians(QUICK, network().eval(), images, 3 * arguments.rounds),
        "width 16": medians(tuple(ORDER), load_model(NETWORK).float(), images, arguments.rounds),
    }
    print(f"{'':<8}{'width 16':>12}{'width 64':>12}{'paper':>12}   (seconds)")
    for name in ORDER:
        cells = [found[width].get(name) for width in ("width 16", "width 64")]
        cells.append(printed_seconds("cifar10", name))
        print(f"{METHODS[name]:<8}" + "".join(f"{'-' if cell is None else format(cell, '.4g'):>12}" for cell in cells))
    holds = {}
    for width, took in found.items():
        names = [name for name in ORDER if name in took]
        holds[f"{width}: {' < '.join(names)}"] = all(took[a] < took[b] for a, b in itertools.pairwise(names))
    for order, true in holds.items():
        print(f"{order} {'holds' if true else 'does not hold'}")
    record = {
        "images": IMAGES,
        "rounds": arguments.rounds,
        "threads": 1,
        "seconds": {w: {n: round(v, 4) for n, v in s.items()} for w, s in found.items()},
        "order_holds": holds,
        "processor": processor(),
        "load_before": round(load, 2),
        "torch": torch.__version__,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
