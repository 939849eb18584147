"""What each method costs, in forward passes, or in forward and backward passes, over the images that it is shown.

    python benchmarks/defence_speed.py [--data-dir DIR] [--rounds 5]

The zoo's BadNets network (ResNet-18 of width 16), 500 training images of CIFAR-10, one torch thread, everything in
turns in one process. The yardsticks are plain loops: one forward pass of one batch of 500 in float32 in eval mode, and
one epoch of training (forward, backward, SGD step) under the package's autocast (I-BAU: float32), in the method's own
batches. Methods run a fraction of their default iterations, which the record states; times include a method's copies
and checks, the layer graph is read beforehand. Writes benchmarks/defence_speed.json. Needs the data set.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from unbackdoor.api import load_model
from unbackdoor.data import LabelledImages, clean_subset, load_dataset, normalise
from unbackdoor.defences.base import Defence
from unbackdoor.defences.table import parse_method
from unbackdoor.defender.case import Case
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph import layer_graph
from unbackdoor.precision import autocast_dtype
from unbackdoor.provenance import processor

NETWORK = Path(__file__).parents[1] / "zoo" / "cifar10_badnet" / "model.safetensors"
IMAGES = 500
#: Method -> settings here, how many images it is shown (forward and backward where it trains), and its batch size.
CASES: tuple[tuple[str, dict[str, int], int, int], ...] = (
    ("lpp", {}, 0, 0),
    ("clp", {}, 0, 0),
    ("bnp", {}, IMAGES, 0),
    ("ep", {}, IMAGES, 0),
    ("ft", {"epochs": 2}, 2 * IMAGES, 256),
    ("fp", {"epochs": 2}, 2 * IMAGES, 256),
    ("nad", {"epochs": 2, "teacher_epochs": 1}, 3 * IMAGES, 64),
    ("rnp", {"unlearn_epochs": 2, "recover_epochs": 2}, 4 * (IMAGES - IMAGES // 5), 128),
    ("anp", {"iterations": 8}, 8 * 128, 128),
    ("ibau", {"rounds": 1}, IMAGES, 100),
)


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def forward(model: nn.Module, images: LabelledImages) -> None:
    """One pass of one batch."""
    with torch.no_grad():
        model.eval()(normalise(images.images, images.spec).contiguous(memory_format=torch.channels_last))


def training(model: nn.Module, images: LabelledImages, batch_size: int, *, mixed: bool) -> None:
    """One epoch of plain training."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-6)
    dtype = autocast_dtype(torch.device("cpu")) if mixed else None
    model.train()
    for x, y in zip(images.images.split(batch_size), images.labels.split(batch_size), strict=True):
        inputs = normalise(x, images.spec).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(inputs), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def run(method: Defence, model: nn.Module, images: LabelledImages, graph: LayerGraph | None = None) -> None:
    """One call; without a graph, its reading is part of it."""
    case = Case(network=model, graph=graph, generator=torch.Generator().manual_seed(0))
    if method.needs != "nothing":
        case = dataclasses.replace(case, images=images.images, labels=images.labels, spec=images.spec)
    method.run(case)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = clean_subset(load_dataset("cifar10", "train", options.data_dir), count=IMAGES, seed=0).data
    model = load_model(NETWORK).float()
    plain = load_model(NETWORK).float().to(memory_format=torch.channels_last)
    graph = layer_graph(model)
    rows = {}
    for name, settings, shown, batch_size in CASES:
        method = dataclasses.replace(parse_method(name), **settings)
        run(method, model, images, graph)  # warm-up
        own, ratios = [], []
        for _ in range(options.rounds):
            spent = seconds(lambda method=method: run(method, model, images, graph))  # type: ignore[misc]
            if batch_size:
                mixed = name != "ibau"  # second derivatives are taken in float32
                unit = seconds(lambda b=batch_size, m=mixed: training(plain, images, b, mixed=m)) * shown / IMAGES  # type: ignore[misc]
            else:
                unit = seconds(lambda: forward(plain, images))
            own.append(spent)
            ratios.append(spent / unit)
        rows[name] = {
            "settings": settings,
            "images_shown": shown,
            "seconds": round(statistics.median(own), 4),
            "yardstick": "forward and backward of as many images" if batch_size else "forward of one batch of 500",
            "multiple": round(statistics.median(ratios), 3),
            "multiples": [round(r, 3) for r in ratios],
        }
        print(name, json.dumps(rows[name]), flush=True)
    dtype = autocast_dtype(torch.device("cpu"))
    record = {
        "network": "resnet18:width=16",
        "images": IMAGES,
        "rounds": options.rounds,
        "threads": 1,
        "autocast": None if dtype is None else str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "processor": processor(),
        "methods": rows,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
