"""The most memory that each method takes on 500 images and a full ResNet-18 (width 64).

    python benchmarks/defence_memory.py [--data-dir DIR]

A process a method, fresh weights, the methods' own batch sizes, one or two rounds of each stage (memory does not
grow with their number). The figures are the whole process's peak, torch (about 0.4 GB) and the images among it. Writes
benchmarks/defence_memory.json. Needs the data set.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import torch

from unbackdoor.data import clean_subset, load_dataset
from unbackdoor.defences.table import DEFENCES, parse_method
from unbackdoor.models import parse_arch

IMAGES = 500


def one(name: str, data_dir: str | None) -> float:
    """Peak memory of this process in GB, behind one short repair."""
    images = clean_subset(load_dataset("cifar10", "train", data_dir), count=IMAGES, seed=0).data
    method = parse_method(name)
    short = {field.name: 1 for field in dataclasses.fields(method) if re.fullmatch(r".*(epochs|rounds)", field.name)}
    short |= {field.name: 2 for field in dataclasses.fields(method) if field.name == "iterations"}
    method = dataclasses.replace(method, **short)
    model = parse_arch("resnet18").build()
    method(model, images.images, images.labels, generator=torch.Generator().manual_seed(0), spec=images.spec)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(one(options.one, options.data_dir))
        return
    found = {}
    for name in sorted(name for name in DEFENCES if DEFENCES[name].needs != "nothing"):
        words = [sys.executable, __file__, "--one", name]
        words += ["--data-dir", options.data_dir] if options.data_dir else []
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found[name] = round(float(done.stdout), 2)
        print(name, found[name], "GB", flush=True)
    record = {"network": "resnet18", "images": IMAGES, "peak_gb": found, "torch": torch.__version__}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
