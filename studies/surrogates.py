"""How do images that need no data compare with real ones? For each kind, of each backdoored network:

    classes   exp of the entropy of the answers: how many classes are answered, in effect
    largest   the share of the answers that the most frequent class has
    sure      the mean probability of the answer
    moved     the share of the images, not answered with the attacker's class, that the true trigger moves there

    python studies/surrogates.py zoo/population/training -o studies/surrogates.json
    python studies/surrogates.py -o studies/surrogates.json      # the table of an earlier run, as Markdown

Of the population's pairs, only networks of the half for calibration are looked at; an attack on all classes has no one
class, and is left out. Nothing is chosen by these figures but the kinds themselves. Needs the data sets.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

import trained
from repairs import attack_of
from trained import Row
from unbackdoor.attacks import load_attack
from unbackdoor.data import load_dataset
from unbackdoor.defender.on_pixels import OnPixels, on_pixels
from unbackdoor.defender.photographs import photographs
from unbackdoor.defender.surrogates import class_images, dead_leaves, random_spectra
from unbackdoor.records import pretty
from witnesses import allowed, networks, truth

COUNT = 200


def kinds(shown: OnPixels, real: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """(N, C, H, W) in [0, 1] of each kind."""
    made = class_images(shown, COUNT, generator).images
    order = torch.randperm(len(made), generator=generator)
    return {
        "test images": real,
        "photographs": photographs(2 * COUNT, shown.spec, generator),
        "class impressions": made,
        "averages of two": (made + made[order]) / 2,
        "averages with photographs": (made + photographs(len(made), shown.spec, generator)) / 2,
        "dead leaves": dead_leaves(COUNT, shown.spec, generator),
        "random spectra": random_spectra(COUNT, shown.spec, generator),
    }


def measure(folder: Path) -> list[Row]:
    """A row a kind."""
    config, _ = trained.read(folder)
    data = load_dataset(trained.source(config["data"]), "test")
    attack = load_attack(folder / "attack.json")
    case, generator, rows = trained.case(folder, data.spec), torch.Generator().manual_seed(0), []
    with case.working("surrogates") as model:
        shown, _note = on_pixels(case, model)
        drawn = torch.randperm(len(data.images), generator=generator)[: 2 * COUNT]
        for kind, images in kinds(shown, data.images[drawn].float() / 255, generator).items():
            logits = shown.logits(images)
            answers = logits.argmax(1)
            shares = torch.bincount(answers, minlength=shown.classes) / len(answers)
            others = (255 * images[answers != attack.target]).round().to(torch.uint8)
            after = shown.logits(attack.stamp(others).float() / 255).argmax(1) if len(others) else answers[:0]
            rows.append(
                {
                    **{key: value for key, value in truth(folder).items() if key not in ("seed", "recipe")},
                    "kind": kind,
                    "classes": round(float(torch.special.entr(shares).sum().exp()), 1),
                    "largest": round(float(shares.max()), 3),
                    "sure": round(float(logits.softmax(1).amax(1).mean()), 3),
                    "images": len(others),
                    "moved": round(float((after == attack.target).double().mean()), 3) if len(others) else None,
                }
            )
    return rows


def table(rows: list[Row]) -> str:
    """A row a network: answered classes in effect, and what the true trigger moves."""
    names = list(dict.fromkeys(row["kind"] for row in rows))
    lines = [f"| network | attack | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = {row["kind"]: row for row in rows if row["network"] == network}
        first = mine[names[0]]
        cells = [f"{mine[name]['classes']:.0f}; {_percent(mine[name]['moved'])}" for name in names]
        lines.append(f"| {first['arch']}, {first['data']} | {attack_of(first)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.0f} %"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("-o", "--output", type=Path, default=Path("surrogates.json"))
    args = parser.parse_args()
    if args.paths:
        torch.set_num_threads(1)
        rows: list[Row] = []
        for folder in networks(args.paths):
            config, _ = trained.read(folder)
            if allowed(config) and (config["attack"] or {}).get("mapping") == "all-to-one":
                rows += measure(folder)
                print(folder.name, flush=True)
        args.output.write_text(pretty(rows))
    print(table(json.loads(args.output.read_text())), end="")


if __name__ == "__main__":
    main()
