"""How long LPP and CLP take on a full ResNet-18, beside the cheapest possible pass over its weights.

All lines run in one process on one thread, interleaved (A B C ... A B C ...), so that whatever else the machine does
falls on all of them alike; the ratios of the medians are what counts. The targets are of wall time. Processor time is
shown beside it: on a busy machine, where a line of two milliseconds waits for a core longer than it runs, only that
still means something.

    python benchmarks/speed.py [--repeats 15] [--out benchmarks/speed.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy and torch are loaded

import torch
from torch import Tensor, nn

from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph import layer_graph
from unbackdoor.models.resnet import resnet18
from unbackdoor.provenance import processor

LINES = {
    "a": "read every weight once (a sum a tensor)",
    "b": "LPP().plan(model, graph=graph)",
    "c": "CLP().plan(model, graph=graph)",
    "d": "one SVD a channel, as CLP is published",
    "e": "layer_graph(model)",
    "f": "LPP()(model): graph, plan, copy, apply, report",
}

#: (name, numerator, denominator, bound, whether the ratio must be at least that).
TARGETS = (
    ("LPP costs at most 3 readings", "b", "a", 3.0, False),
    ("LPP is 30 times faster than the SVD loop", "d", "b", 30.0, True),
    ("CLP is 5 times faster than the SVD loop", "d", "c", 5.0, True),
)


def network() -> nn.Module:
    """ResNet-18 with 10 classes, width 64, 11,173,962 parameters, and norms that are not the identity."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10, width=64).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def svd_loop(model: nn.Module) -> list[Tensor]:
    """The masks of CLP by its formula: sigma(w_j) |gamma_j| / sqrt(var_j), cut at mean + 3 std, channel by channel.

    `torch.svd` is what the published code calls; it computes the singular vectors too.
    """
    masks = []
    conv = None
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            conv = module
        elif isinstance(module, nn.BatchNorm2d) and conv is not None:
            constants = []
            for j in range(conv.out_channels):
                sigma = torch.svd(conv.weight[j].reshape(conv.weight.shape[1], -1))[1].max()
                constants.append(sigma * (module.weight[j] / module.running_var[j].sqrt()).abs())
            together = torch.stack(constants)
            masks.append(together > together.mean() + 3 * together.std())
    return masks


def measure(model: nn.Module, graph: LayerGraph, repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of every line, by the wall clock and of the processor; the first round only warms up."""
    weights = [parameter.detach() for parameter in model.parameters()]
    work: dict[str, Callable[[], object]] = {
        "a": lambda: [weight.sum() for weight in weights],
        "b": lambda: LPP().plan(model, graph=graph),
        "c": lambda: CLP().plan(model, graph=graph),
        "d": lambda: svd_loop(model),
        "e": lambda: layer_graph(model),
        "f": lambda: LPP()(model),
    }
    clocks: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {clock: {key: [] for key in work} for clock in clocks}
    with torch.no_grad():
        for _ in range(repeats + 1):
            for key, run in work.items():
                starts = {clock: read() for clock, read in clocks.items()}
                run()
                for clock, read in clocks.items():
                    seconds[clock][key].append(read() - starts[clock])
    return {
        clock: {key: statistics.median(values[1:]) * 1e3 for key, values in lines.items()}
        for clock, lines in seconds.items()
    }


def main() -> None:
    """Measure, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    model = network()
    medians = measure(model, layer_graph(model), arguments.repeats)
    wall, cpu = medians["wall"], medians["cpu"]
    print(f"{'':52s}      wall               processor")
    for key, text in LINES.items():
        figures = (f"{ms[key]:9.2f} ms {ms[key] / ms['a']:7.1f} x a" for ms in (wall, cpu))
        print(f"{key}  {text:48s}", *figures)
    ratios = []
    for name, numerator, denominator, bound, at_least in TARGETS:
        by_wall, by_cpu = (ms[numerator] / ms[denominator] for ms in (wall, cpu))
        met = by_wall >= bound if at_least else by_wall <= bound
        ratios.append({"target": name, "bound": bound, "wall": round(by_wall, 2), "cpu": round(by_cpu, 2), "met": met})
        sign = ">=" if at_least else "<="
        verdict = "met" if met else "MISSED"
        print(f"{name}: {numerator}/{denominator} = {by_wall:.2f} {sign} {bound:g}: {verdict} (processor {by_cpu:.2f})")
    record = {
        "network": "resnet18, width 64, 10 classes",
        "torch": torch.__version__,
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "load_average_before": round(load, 2),
        "repeats": arguments.repeats,
        "median_ms": {text: {clock: round(ms[key], 3) for clock, ms in medians.items()} for key, text in LINES.items()},
        "ratios": ratios,
    }
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"load average before: {load:.2f}; wrote {arguments.out}")


if __name__ == "__main__":
    main()
