"""How long the witnesses and `best` take on one CPU thread, and how much memory, by classes, parameters and image size.

    python benchmarks/deep_scan.py [NAME...]

A process a network, one torch thread, seed 0. The weights are random, and those of the classifier ten times as large as
they begin, so that the network is sure of its answers. A look takes no other steps on a trained network. `best` is
given a class (`best:label=0`); how many repairs it tries depends on the network, so its time is only an example. Writes
deep_scan.json; without names, only networks that are not in it are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

import unbackdoor as ub
from unbackdoor.models import parse_arch
from unbackdoor.provenance import processor

#: Name -> architecture, pixels a side, and whether `best` is run.
NETWORKS = {
    "10 classes": ("resnet18:width=16", 32, True),
    "43 classes": ("resnet18:width=16,num_classes=43", 32, True),
    "200 classes": ("resnet18:width=16,num_classes=200", 32, False),
    "width 32": ("resnet18:width=32", 32, False),
    "width 64": ("resnet18", 32, True),
    "64 x 64": ("resnet18:width=16", 64, False),
    "128 x 128": ("resnet18:width=16", 128, False),
}
RECORD = Path(__file__).with_suffix(".json")


def network(arch: str) -> nn.Module:
    """With random weights, norms that are not the identity, and a classifier that is sure."""
    torch.manual_seed(0)
    model = parse_arch(arch).build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(10)
    return model


def one(name: str) -> dict[str, object]:
    """The row of a network, measured in this process."""
    arch, side, repaired = NETWORKS[name]
    model, example = network(arch), torch.zeros(1, 3, side, side)
    parts: dict[str, float] = {}
    begun = last = time.process_time()

    def told(_done: int, _total: int, note: str) -> None:
        nonlocal last
        now = time.process_time()
        part = note.split(" of class")[0]
        parts[part] = parts.get(part, 0.0) + now - last
        last = now

    wall = time.perf_counter()
    ub.witness(model, example=example, progress=told)
    row: dict[str, object] = {
        "arch": arch,
        "side": side,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "look_cpu": round(time.process_time() - begun, 1),
        "look_wall": round(time.perf_counter() - wall, 1),
        "parts_cpu": {part: round(seconds, 1) for part, seconds in parts.items()},
    }
    if repaired:
        begun = time.process_time()
        ub.parse_method("best:label=0")(model, example=example, generator=torch.Generator().manual_seed(0))
        row["best_cpu"] = round(time.process_time() - begun, 1)
    row["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return row


def table(rows: dict[str, dict[str, object]]) -> str:
    """As Markdown."""
    lines = ["| network | parameters | look, CPU s | wall s | `best`, CPU s | peak, GB |", "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        best = row.get("best_cpu", "")
        cells = (f"{row['parameters']:,}", row["look_cpu"], row["look_wall"], best, row["peak_gb"])
        lines.append(f"| {row['arch']}, {name} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(1)
        print(json.dumps(one(options.one)))
        return
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"rows": {}}
    record |= {"processor": processor(), "torch": torch.__version__}
    for name in options.names or [name for name in NETWORKS if name not in record["rows"]]:
        load = os.getloadavg()[0]
        done = subprocess.run([sys.executable, __file__, "--one", name], stdout=subprocess.PIPE, text=True, check=True)
        record["rows"][name] = {**json.loads(done.stdout), "load": round(load, 2)}
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
        print(table({name: record["rows"][name]}).splitlines()[-1], flush=True)
    print(table(record["rows"]))


if __name__ == "__main__":
    main()
