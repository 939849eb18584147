"""What a method costs a network that has no backdoor: its accuracy on training images, before and after.

    python benchmarks/clean_cost.py MODEL... [--data cifar10] [--images 10000]

Defaults are chosen by this figure and never by a test set or a trigger: most networks that are repaired are clean, and
what is cut from them is lost for nothing. Prints a Markdown table. Needs the data set (--data-dir or $UNBACKDOOR_DATA).
"""

from __future__ import annotations

import argparse

import torch

from unbackdoor.data import load_dataset
from unbackdoor.defences.base import DataFree
from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.model_files import load_model
from unbackdoor.train import measure

VARIANTS: dict[str, DataFree | None] = {
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
    "LPP as printed": LPP.as_printed(),
    "CLP, default": CLP(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, default=10_000, help="the first N training images")
    options = parser.parse_args()
    images = load_dataset(options.data, "train", options.data_dir)[: options.images]
    models = [load_model(path).float() for path in options.models]
    names = [path.rstrip("/").split("/")[-2] if "/" in path else path for path in options.models]
    print(f"ACC in % on the first {len(images)} training images of {options.data} (channels pruned + shrunk)\n")
    print("| variant | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for name, method in VARIANTS.items():
        cells = []
        for model in models:
            outcome = method(model) if method is not None else None
            acc = measure(outcome.model if outcome else model, images, None).acc.value or 0.0
            cells.append(f"{acc:.2%}" + (f" ({outcome.report.pruned} + {outcome.report.scaled})" if outcome else ""))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
