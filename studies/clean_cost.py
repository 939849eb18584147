"""What a method costs a network that has no backdoor: its accuracy on training images, before and after.

    python studies/clean_cost.py MODEL... [--data cifar10] [--images 5000] [--out FILE]

Defaults are chosen by this figure and never by a test set or a trigger: most networks that are repaired are clean, and
what is cut from them is lost for nothing. Prints a Markdown table with a column a network, which is named by its
folder, and writes it as JSON beside this file; `python docs/make_tables.py` puts it into docs/fidelity.md. Needs the
data set (--data-dir or $UNBACKDOOR_DATA).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbackdoor.api import load_model
from unbackdoor.data import LabelledImages, load_dataset
from unbackdoor.defences.base import Defence
from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.metrics import measure
from unbackdoor.records import pretty

VARIANTS: dict[str, Defence | None] = {
    "as it came": None,
    "LPP, default": LPP(),
    "LPP, no band": LPP(band=0),
    "LPP, near outliers to the mean (Eq. 9)": LPP(shrink_to="mean"),
    "LPP, to the mean, band 1": LPP(shrink_to="mean", band=1.0),
    "LPP, to the mean, band 0.5": LPP(shrink_to="mean", band=0.5),
    "LPP, weights scaled": LPP(scale="weight"),
    "LPP, to the mean, weights scaled": LPP(shrink_to="mean", scale="weight"),
    "LPP, squared norm": LPP(norm="l2sq"),
    "LPP, upper cut only": LPP(lower=float("-inf")),
    "LPP, no classifier step": LPP(fc_weights=0),
    "LPP, 5 % of the classifier": LPP(fc_weights=0.05),
    "LPP, CLP's norm": LPP(norm="spectral"),
    "LPP, CLP's norm, no band": LPP(norm="spectral", band=0),
    "LPP, either norm": LPP(norm="either"),
    "LPP, either norm, no band (`either_norm`)": LPP.either_norm(),
    "LPP, either norm, no band, upper cut only": LPP(norm="either", band=0, lower=float("-inf")),
    "LPP, either norm, no band, no classifier step": LPP(norm="either", band=0, fc_weights=0),
    "LPP as printed": LPP.as_printed(),
    "CLP, default": CLP(),
}


def cost(model: nn.Module, method: Defence | None, images: LabelledImages) -> dict[str, Any]:
    """ACC in percent, and what was done for it."""
    outcome = None if method is None else method(model)
    acc = measure(model if outcome is None else outcome.model, images, None).acc
    found: dict[str, Any] = {"acc": round(100 * (acc.value or 0.0), 2)}
    if outcome is not None:
        found |= {"pruned": outcome.report.pruned, "scaled": outcome.report.scaled}
    return found


def said(figures: dict[str, Any]) -> str:
    """A cell of the table."""
    done = f" ({figures['pruned']} + {figures['scaled']})" if "pruned" in figures else ""
    return f"{figures['acc']:.2f}{done}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, default=5_000, help="the first N training images")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    images = load_dataset(options.data, "train", options.data_dir)[: options.images]
    models = {path.resolve().parent.name: load_model(path).float() for path in options.models}
    if len(models) < len(options.models):
        parser.error("two of the models lie in folders of one name")
    rows: dict[str, dict[str, Any]] = {}
    print(f"ACC in % on the first {len(images):,} training images of {options.data} (channels pruned + shrunk)\n")
    print("| variant | " + " | ".join(models) + " |\n|---|" + "---|" * len(models))
    for name, method in VARIANTS.items():
        rows[name] = {network: cost(model, method, images) for network, model in models.items()}
        print(f"| {name} | " + " | ".join(map(said, rows[name].values())) + " |", flush=True)
    found = {"command": " ".join(["python", *sys.argv]), "data": options.data, "images": len(images), "rows": rows}
    options.out.write_text(pretty(found))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
