"""What does a repair leave, and what says so without data?

    python studies/left.py FOLDER...     # networks of unbackdoor train; appends rows to left.jsonl, and shows the table
    python studies/left.py               # the table of earlier runs, as Markdown

Each repair of a network is told the attacker's class, and ends as it does by itself. After each of its rounds stand the
true rates, what the repair says is left, and what each way of another search still moves of the generated images: the
triggers as they were found and stronger, and the channels. The table has medians of these. A round that was undone
stands as what it was undone to. ACC, ASR and the target's recall, before and after, are measured on 2,000 test images.

Only networks with one target are taken, and of the population's pairs those of the half for calibration. A network that
is there already is passed over. Seed 0. Needs the data sets.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

import repairs
import trained
from repairs import attack_of
from trained import Row
from unbackdoor.attacks import load_attack
from unbackdoor.data import load_dataset
from unbackdoor.defences.data_free import Erase, Forget, Pushing
from unbackdoor.defences.data_free.looking import Looking
from unbackdoor.defences.data_free.scene import Scene, WaysIn
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.ways_in import STRONGER, Stamp, Way, success
from unbackdoor.errors import MethodError
from unbackdoor.prune import copy_model
from witnesses import allowed, append, networks, truth

ROWS = Path(__file__).with_suffix(".jsonl")
IMAGES = 2000
STRENGTHS = (1.0, STRONGER, 2.0)


@dataclass(frozen=True, kw_only=True)
class Trials(Looking):
    """Every repair on a copy, and what was seen after each round; the network itself stays as it is."""

    name = "trials"

    true: Callable[[nn.Module], Row]
    rows: list[Row] = field(default_factory=list)

    def close(self, scene: Scene, search: WaysIn) -> list[str]:
        """See above."""
        if not search.first.ways:
            print(f"no easy way into class {search.label} was found", flush=True)
            return []
        for method in (Erase(), Pushing(), Forget()):
            shown = dataclasses.replace(scene.shown, model=copy_model(scene.shown.model))
            copied = dataclasses.replace(scene, shown=shown)
            try:
                for number, (_, standing) in enumerate(method.each_round(copied, search, search.first), start=1):
                    row = {"method": method.name, "round": number, **self.true(shown.model)}
                    row |= {"left": standing.left, "regained": standing.regained}
                    self.rows.append({**row, **seen(shown, search)})
            except MethodError as error:
                print(f"{method.name}: {error}", flush=True)
        return []


def seen(shown: OnPixels, search: WaysIn) -> Row:
    """What `best` can see of a repaired network: for each strength what each trigger moves; what each channel does."""
    triggers = [way for way in search.second if isinstance(way, Stamp)]
    channels = [way for way in search.second if not isinstance(way, Stamp)]

    def moved(way: Way, strength: float = 1.0) -> float:
        return success(shown, [way], search.judged_on, search.label, strength=strength)

    return {
        "triggers": [[moved(way, strength) for way in triggers] for strength in STRENGTHS],
        "channels": [moved(way) for way in channels],
    }


def is_taken(folder: Path) -> bool:
    """Whether a network's backdoor has one target, and it may be looked at."""
    config, _ = trained.read(folder)
    return bool(config["attack"]) and config["attack"].get("mapping") != "all-to-all" and allowed(config)


def measure(folder: Path) -> list[Row]:
    """A row a repair and round."""
    config, _ = trained.read(folder)
    test = load_dataset(trained.source(config["data"]), "test")
    some = torch.randperm(len(test.images), generator=torch.Generator().manual_seed(0))[:IMAGES]
    test = dataclasses.replace(test, images=test.images[some], labels=test.labels[some])
    target = load_attack(folder / "attack.json").target
    case = trained.case(folder, test.spec)
    before = repairs.rates(case.module, test, folder)
    trials = Trials(label=target, true=lambda model: repairs.rates(model, test, folder))
    trials.run(case)
    true = {key: value for key, value in truth(folder).items() if key not in ("acc", "asr")}
    return [{**true, "before": before, **row} for row in trials.rows]


def table(rows: list[Row]) -> str:
    """A row a repair and round, in percent."""
    strengths = " | ".join(f"triggers, {strength:g} times" for strength in STRENGTHS)
    lines = [
        f"| network | attack | repair, round | ACC | recall | ASR | {strengths} | channels |",
        "|---" * (7 + len(STRENGTHS)) + "|",
    ]
    for row in rows:
        medians = [*map(_median, row["triggers"]), _median(row["channels"])]
        network = f"{row['arch']}, {row['data']} | {attack_of(row)}"
        rates = " | ".join(f"{100 * row[name]:.1f}" for name in ("acc", "recall", "asr"))
        lines.append(f"| {network} | {row['method']}, {row['round']} | {rates} | {' | '.join(medians)} |")
    return "\n".join(lines) + "\n"


def _median(shares: list[float]) -> str:
    return f"{100 * statistics.median(shares):.0f}" if shares else ""


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    torch.set_num_threads(1)
    append(filter(is_taken, networks(args.paths)), ROWS, measure)
    print(table(trained.rows(ROWS)), end="")


if __name__ == "__main__":
    main()
