"""Which of the channels that CLP cuts and LPP does not decide over a backdoor.

Channels alone are switched off here: no near outlier is shrunk, no classifier weight is cut. To LPP's set, each of the
channels that CLP cuts beside is added alone; from CLP's, each is left out alone. Beside ACC and ASR stands the share
of clean images of other classes that are answered with the attacker's class: where it is large, the ASR is no
backdoor's, but a network that has collapsed onto one class.

    python studies/decisive_channels.py zoo/cifar10_wanet [--data cifar10] [--images 2000] [--out FILE]

The folder is one of `unbackdoor train`, or of a store's trainings. Nothing is chosen by these figures. Needs the data
set.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbackdoor.api import load_model
from unbackdoor.attacks import load_attack
from unbackdoor.data import LabelledImages, load_dataset, normalise
from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.graph import layer_graph
from unbackdoor.metrics import measure
from unbackdoor.records import pretty

Channels = frozenset[tuple[str, int]]


def cut_by(method: LPP | CLP, model: nn.Module) -> Channels:
    """The channels that a method switches off."""
    report = method(model).report
    return frozenset((layer.path, channel) for layer in report.layers for channel in layer.pruned)


def without(model: nn.Module, channels: Channels) -> nn.Module:
    """A copy in which the BatchNorm behind each of these channels is 0."""
    found = copy.deepcopy(model)
    tensors, graph = found.state_dict(), layer_graph(model)
    behind = {layer.path: graph.norms[layer.norm] for layer in graph.layers if layer.norm is not None}
    for path, channel in channels:
        norm = behind[path]
        for name in (norm.weight, norm.bias):
            tensors[name][channel] = 0
    return found


def collapsed(model: nn.Module, test: LabelledImages, target: int) -> float:
    """The share of clean images of other classes that are answered with the attacker's class."""
    others = test.images[test.labels != target]
    with torch.no_grad():
        answers = [model(normalise(x, test.spec)).argmax(1) for x in others.split(250)]
    return float((torch.cat(answers) == target).float().mean())


def main() -> None:
    """Measure, print a Markdown table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, default=2_000, help="the first N test images")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    test = load_dataset(options.data, "test", options.data_dir)[: options.images]
    attack = load_attack(options.folder / "attack.json")
    model = load_model(options.folder / "model.safetensors").float()
    lpp, clp = cut_by(LPP(), model), cut_by(CLP(), model)
    rows: dict[str, nn.Module] = {
        "as it came": model,
        "LPP": LPP()(model).model,
        "CLP": CLP()(model).model,
        "LPP's channels": without(model, lpp),
        "CLP's channels": without(model, clp),
        "the channels of both": without(model, lpp & clp),
    }
    for path, channel in sorted(clp - lpp):
        rows[f"LPP's channels and {path}[{channel}]"] = without(model, lpp | {(path, channel)})
    for path, channel in sorted(clp - lpp):
        rows[f"CLP's channels but {path}[{channel}]"] = without(model, clp - {(path, channel)})
    found: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "images": len(test), "rows": {}}
    print("| | ACC / ASR, % | clean images answered with the target, % |\n|---|---|---|")
    for name, network in rows.items():
        rates, share = measure(network, test, attack), collapsed(network, test, attack.target)
        acc, asr = (100 * (rate.value or 0.0) for rate in (rates.acc, rates.asr))
        found["rows"][name] = {"acc": round(acc, 2), "asr": round(asr, 2), "target": round(100 * share, 2)}
        print(f"| {name} | {acc:.2f} / {asr:.2f} | {100 * share:.2f} |", flush=True)
    if options.out is not None:
        options.out.write_text(pretty(found))


if __name__ == "__main__":
    main()
