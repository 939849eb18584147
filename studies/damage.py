"""The damage meter's rows and fit: what edits cost in truth, against what generated images say.

    python studies/damage.py measure NETWORK... -o FILE [--images 1000]    # folders of unbackdoor train
    python studies/damage.py fit FILE... [--check FILE...]                 # writes the package's meter.json
    python studies/damage.py show FILE...                                  # how the package's meter does on rows

`measure` edits each network in many ways (LPP and CLP over their thresholds, channels drawn at random, directions taken
out of the classifier at random) and writes a row an edit: the true loss of accuracy, and the meter's features. The loss
is measured on --images of the test images with even numbers; tables are made on the others. (On the training images a
network is surer than on any new one, so that an edit's harm does not show.) studies/damage.jsonl holds the rows behind
the package's meter.json.

`fit` finds non-negative coefficients by least squares of logarithms, and the interval from residuals on networks left
out in turn. It prints how both do on the files of --check, which nothing is fitted on. Only networks of the calibration
half go into a fit: of the population's pairs, `measure` takes no others.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import least_squares, nnls
from scipy.stats import spearmanr
from torch import nn

import intervals
import trained
from trained import Row
from unbackdoor import metrics
from unbackdoor.api import load_model
from unbackdoor.data import LabelledImages, load_dataset
from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.defender import meter
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.errors import UnbackdoorError
from unbackdoor.graph import layer_graph
from unbackdoor.inputs import Normalisation
from unbackdoor.records import pretty
from witnesses import allowed, pair_of

THRESHOLDS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.5)
#: Shares of all hidden channels, and numbers of directions of the classifier's input.
SHARES, DIRECTIONS = (0.005, 0.01, 0.02, 0.04, 0.08), (1, 2, 4)
#: The interval holds this share of the calibration's losses.
CONFIDENCE = 0.9
#: Points of accuracy; the true losses are known to about so many.
REST = 0.5


def edits(model: nn.Module, generator: torch.Generator) -> Iterator[tuple[str, nn.Module]]:
    """Edited copies of a network, by name."""
    for u in THRESHOLDS:
        for method in (LPP(upper=u, lower=-u), LPP(upper=u, lower=-u, band=0, norm="spectral"), CLP(u=u)):
            name = f"{method.name} {u:g}" + (" spectral" if getattr(method, "norm", "") == "spectral" else "")
            try:
                yield name, method(model).model
            except UnbackdoorError as error:
                print(f"  {name}: {error}", file=sys.stderr)
    for share in SHARES:
        yield f"random channels {share:g}", _pruned(model, share, generator)
    for count in DIRECTIONS:
        yield f"random directions {count}", _projected(model, count, generator)


def _pruned(model: nn.Module, share: float, generator: torch.Generator) -> nn.Module:
    """Hidden channels drawn at random, switched off."""
    edited = copy.deepcopy(model)
    graph = layer_graph(edited)
    tensors = edited.state_dict()
    for layer in graph.layers:
        if layer.part != "hidden" or layer.transposed or layer.parametrization is not None:
            continue
        off = torch.rand(layer.out_channels, generator=generator) < share
        norm = None if layer.norm is None else graph.norms[layer.norm]
        names = [layer.weight, layer.bias] if norm is None else [norm.weight, norm.bias]
        for name in names:
            if name is not None:
                tensors[name][off] = 0
    return edited


def _projected(model: nn.Module, count: int, generator: torch.Generator) -> nn.Module:
    """The classifier without `count` random directions of its input, of the rows' own span."""
    edited = copy.deepcopy(model)
    head = [module for module in edited.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        weight = head.weight
        span = torch.randn(count, len(weight), generator=generator) @ weight
        basis = torch.linalg.qr(span.T).Q
        weight -= weight @ basis @ basis.T
    return edited


def measure(folder: Path, count: int, data_dir: Path | None) -> list[Row]:
    """The rows of one network."""
    config, _ = trained.read(folder)
    data = load_dataset(trained.source(config["data"]), "test", data_dir)
    step = 2 * max(1, len(data.images) // (2 * count))
    images, labels = data.images[::step][:count], data.labels[::step][:count]
    data = LabelledImages(images=images, labels=labels, spec=data.spec)
    generator = torch.Generator().manual_seed(0)
    model = load_model(folder / "model.safetensors").float().eval().requires_grad_(False)
    shape = (data.spec.channels, data.spec.size, data.spec.size)
    spec = Normalisation(mean=data.spec.mean, std=data.spec.std).spec(shape)
    shown = meter.meter_images(OnPixels(model, spec, exact=True), generator)
    before, rows = _accuracy(model, data), []
    for name, edited in edits(model, generator):
        after = _accuracy(edited.eval(), data)
        moved = meter.features(shown, OnPixels(edited, spec, exact=True))
        found = {key: round(value, 5) for key, value in moved.items()}
        about = {"network": folder.name, "arch": pair_of(config)[1], "edit": name, "before": before}
        rows.append({**about, "loss": round(before - after, 3), **found})
    return rows


def _accuracy(model: nn.Module, data: LabelledImages) -> float:
    return 100 * (metrics.measure(model, data, None).acc.value or 0.0)


def names_of(rows: list[Row]) -> list[str]:
    """The features of rows, in their order."""
    return [name for name in rows[0] if name.startswith("moved ")]


def fitted(rows: list[Row], names: list[str]) -> np.ndarray:
    """Non-negative coefficients by least squares of logarithms.

    A loss of 1 that is predicted as 2 is as wrong as one of 10 that is predicted as 20. REST is added to both, as the
    losses are measured no better.
    """
    x = np.array([[row[name] for name in names] for row in rows]) ** meter.POWER
    y = np.log(np.array([max(row["loss"], 0.0) for row in rows]) + REST)
    start = nnls(x, np.exp(y) - REST)[0] + 1e-3
    return np.asarray(least_squares(lambda a: np.log(x @ a + REST) - y, start, bounds=(0, np.inf)).x)


def predicted(rows: list[Row], names: list[str], weights: np.ndarray) -> np.ndarray:
    """Losses in points."""
    return np.array([[row[name] for name in names] for row in rows]) ** meter.POWER @ weights


def left_out(rows: list[Row], names: list[str]) -> np.ndarray:
    """Each row's prediction by a fit on the other networks."""
    result = np.zeros(len(rows))
    for network in {row["network"] for row in rows}:
        own = np.array([row["network"] == network for row in rows])
        weights = fitted([row for row, mine in zip(rows, own, strict=True) if not mine], names)
        result[own] = predicted([row for row, mine in zip(rows, own, strict=True) if mine], names, weights)
    return result


def interval(loss: np.ndarray, guess: np.ndarray, rest: float) -> tuple[float, float]:
    """The smallest factors so that as few losses lie under guess / below - rest as lie over guess * above + rest, and
    CONFIDENCE of them between."""
    above = (loss - rest) / np.maximum(guess, 1e-9)
    below = guess / np.maximum(loss + rest, 1e-9)
    one, other = (float(np.quantile(np.maximum(factor, 1.0), (1 + CONFIDENCE) / 2)) for factor in (below, above))
    return one, other


def covered(rows: list[Row], guess: np.ndarray, rest: float) -> list[float]:
    """Of each network, the share of its losses inside an interval that the others make."""
    loss, network = np.array([row["loss"] for row in rows]), np.array([row["network"] for row in rows])
    shares = []
    for one in sorted(set(network)):
        own = network == one
        below, above = interval(loss[~own], guess[~own], rest)
        inside = (loss[own] >= guess[own] / below - rest) & (loss[own] <= guess[own] * above + rest)
        shares.append(float(inside.mean()))
    return shares


def show(rows: list[Row], scale: meter.Coefficients) -> str:
    """How a meter does on rows, as Markdown; intervals are by bootstrap over networks."""
    names = list(scale.weights)
    guess = predicted(rows, names, np.array([scale.weights[name] for name in names]))
    loss = np.array([row["loss"] for row in rows])
    inside = (loss >= guess / scale.below - scale.rest) & (loss <= guess * scale.above + scale.rest)
    network = np.array([row["network"] for row in rows])
    edit = np.array([" ".join(word for word in row["edit"].split() if not word[0].isdigit()) for row in rows])
    each = [np.flatnonzero(network == name) for name in sorted(set(network))]
    small = [indices[loss[indices] < 5] for indices in each]

    def ranked(parts: list[np.ndarray]) -> float | None:
        """Rank correlation over the edits of networks."""
        some = np.concatenate(parts)
        found = float(spearmanr(loss[some], guess[some]).statistic) if len(some) > 2 else np.nan
        return None if np.isnan(found) else found

    def covering(parts: list[np.ndarray]) -> float | None:
        """The share of losses inside the interval."""
        return float(inside[np.concatenate(parts)].mean())

    shares = [covering([indices]) or 0.0 for indices in each]
    lines = [
        f"{len(rows)} edits of {len(each)} networks.",
        "",
        "| | |",
        "|---|---|",
        f"| rank correlation | {intervals.figure(ranked(each), each, ranked)} |",
        f"| rank correlation below 5 points | {intervals.figure(ranked(small), small, ranked)} |",
        f"| losses inside the {100 * CONFIDENCE:.0f} % interval | {intervals.figure(covering(each), each, covering)} |",
        f"| the same, of the worst network | {min(shares):.3f} |",
        "",
        "| edit | rows | mean loss | mean prediction | inside |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(set(edit)):
        own = edit == name
        figures = f"{loss[own].mean():.1f} | {guess[own].mean():.1f} | {inside[own].mean():.2f}"
        lines.append(f"| {name} | {own.sum()} | {figures} |")
    return "\n".join(lines) + "\n"


def report(title: str, loss: np.ndarray, guess: np.ndarray, scale: meter.Coefficients) -> dict[str, float]:
    """How well guesses rank and bound losses; printed."""
    small = loss < 5
    inside = (loss >= guess / scale.below - scale.rest) & (loss <= guess * scale.above + scale.rest)
    found = {
        "rows": len(loss),
        "rank correlation": float(spearmanr(loss, guess).statistic),
        "rank correlation below 5 points": float(spearmanr(loss[small], guess[small]).statistic),
        "mean error below 5 points": float(np.abs(loss - guess)[small].mean()),
        "inside": float(inside.mean()),
    }
    print(title, {name: round(value, 3) for name, value in found.items()})
    return found


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "fit", "show"))
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("damage.jsonl"))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--check", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "measure":
        done = _read([args.output]) if args.output.exists() else []
        for folder in args.paths:
            if allowed(trained.read(folder)[0]) and all(row["network"] != folder.name for row in done):
                rows = measure(folder, args.images, args.data_dir)
                with args.output.open("a") as out:
                    out.writelines(json.dumps(row) + "\n" for row in rows)
                print(f"{folder.name}: {len(rows)} edits", flush=True)
        return
    rows = _read(args.paths)
    if args.what == "show":
        print(show(rows, meter.coefficients()), end="")
        return
    names = names_of(rows)
    weights = fitted(rows, names)
    loss = np.array([row["loss"] for row in rows])
    guess = left_out(rows, names)
    below, above = interval(loss, guess, REST)
    scale = meter.Coefficients(
        weights={name: round(float(w), 3) for name, w in zip(names, weights, strict=True) if round(float(w), 3) > 0},
        below=round(below, 3),
        above=round(above, 3),
        rest=REST,
        made_on=f"{len(rows)} edits of {_list(rows)}",
    )
    report("left out in turn", loss, guess, scale)
    shares = covered(rows, guess, REST)
    print(f"inside, of networks left out: {np.mean(shares):.3f} on average, {min(shares):.3f} at worst")
    for path in args.check:
        held = _read([path])
        report(str(path), np.array([row["loss"] for row in held]), predicted(held, names, weights), scale)
    target = Path(meter.__file__).with_name("meter.json")
    target.write_text(pretty({name: getattr(scale, name) for name in ("made_on", "weights", "below", "above", "rest")}))


def _list(rows: list[Row]) -> str:
    """The networks of rows; by name if they are few."""
    names = sorted({row["network"] for row in rows})
    return f"{len(names)} networks" + (f" ({', '.join(names)})" if len(names) < 6 else "")


def _read(paths: list[Path]) -> list[Row]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
