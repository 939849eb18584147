"""What repairs without data do to networks whose answer is known.

    python studies/repairs.py measure FOLDER... --methods best,lpp,clp   # appends rows to repairs.jsonl
    python studies/repairs.py show                                       # the table, as Markdown

Networks are those of `unbackdoor train`, or of a grid's store/training; of the population's pairs, only those of the
half for calibration are taken. A repair is told nothing: seed 0, no class, no image. ACC is measured on the whole test
set, ASR on its stamped images of other classes than the target, and recall on the target's own clean images. `measure`
passes over what is there already.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import trained
from trained import Row
from unbackdoor import metrics
from unbackdoor.api.images import case_with_network
from unbackdoor.api.reading import open_model
from unbackdoor.attacks import load_attack
from unbackdoor.data import LabelledImages, load_dataset
from unbackdoor.defences.table import parse_method
from unbackdoor.errors import UnbackdoorError
from witnesses import SLICE, TOOK, allowed, name_of, networks, truth

ROWS = Path(__file__).with_suffix(".jsonl")
#: A backdoor is gone at or below this ASR, if no more accuracy than that is lost (points).
GONE, DEAR = 0.1, 3.0


def rates(model: nn.Module, test: LabelledImages, folder: Path) -> Row:
    """ACC, and with an attack ASR and the target's recall, if it has one; in [0, 1]."""
    file = folder / "attack.json"
    attack = load_attack(file) if file.exists() else None
    measured = metrics.measure(model, test, attack)
    found: Row = {name: rate.value for name, rate in measured.rates.items() if name != "ra"}
    if attack is not None and measured.recall is not None:
        found["target"] = attack.target
    return found


def measure(folder: Path, text: str) -> Row:
    """The row of one network and method."""
    config, _ = trained.read(folder)
    data = SLICE if config["data"] == "tiny20" else config["data"]
    test = load_dataset(data, "test")
    example = torch.zeros(2, test.spec.channels, test.spec.size, test.spec.size)
    case = case_with_network(
        open_model(folder / "model.safetensors"),
        device="cpu",
        seed=0,
        example=example,
        output=None,
        progress=lambda _done, _total, _note: None,
    )
    before = rates(case.module, test, folder)
    started = time.process_time()
    outcome = parse_method(text).run(dataclasses.replace(case, spec=test.spec))
    seconds = time.process_time() - started
    witness = outcome.report.witness
    return {
        **{key: value for key, value in truth(folder).items() if key not in ("acc", "asr")},
        "method": text,
        "before": before,
        "after": rates(outcome.model, test, folder),
        "suspects": None if witness is None else list(witness.suspects),
        "p": None if witness is None else witness.p,
        "story": list(outcome.report.story),
        "seconds": round(seconds, 1),
    }


def rows() -> list[Row]:
    """What was measured so far."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def table(found: list[Row]) -> str:
    """A row a network and method, then a row a method; in percent."""
    lines = [
        "| network | attack | method | ACC | ASR | recall of the target | suspected | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kept = [row for row in found if row["attack"] is None or row["before"].get("asr", 0) >= TOOK]
    for row in sorted(
        kept, key=lambda row: (row["data"], row["arch"], str(row["attack"]), row["network"], row["method"])
    ):
        cells = [
            f"{_percent(row['before'].get(key))} -> {_percent(row['after'].get(key))}"
            for key in ("acc", "asr", "recall")
        ]
        suspected = "" if row["suspects"] is None else ", ".join(map(str, row["suspects"])) or "none"
        attack = "none" if row["attack"] is None else f"{row['attack']['name']} -> {row['before'].get('target', 'all')}"
        name = f"{row['arch']}, {row['data']}"
        cells = [cell if "None" not in cell else "" for cell in cells]
        lines.append(
            f"| {name} | {attack} | {row['method']} | " + " | ".join(cells) + f" | {suspected} | {row['seconds']:.0f} |"
        )
    lines += [
        "",
        "| method | networks | gone | mean ASR | mean loss of ACC | mean loss of recall | clean ones changed |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in sorted({row["method"] for row in kept}):
        mine = [row for row in kept if row["method"] == method]
        bad = [row for row in mine if row["attack"] is not None]
        honest = [row for row in mine if row["attack"] is None]
        if not bad:
            continue
        loss = [100 * (row["before"]["acc"] - row["after"]["acc"]) for row in bad]
        gone = sum(row["after"]["asr"] <= GONE and lost <= DEAR for row, lost in zip(bad, loss, strict=True))
        recall = [100 * (row["before"]["recall"] - row["after"]["recall"]) for row in bad if "recall" in row["before"]]
        asr = statistics.fmean(100 * row["after"]["asr"] for row in bad)
        moved = sum(row["before"] != row["after"] for row in honest)
        lines.append(
            f"| {method} | {len(bad)} | {gone} | {asr:.1f} | {statistics.fmean(loss):.1f} | "
            f"{statistics.fmean(recall):.1f} | {moved} of {len(honest)} |"
        )
    return "\n".join(lines) + "\n"


def _percent(rate: float | None) -> str:
    return "None" if rate is None else f"{100 * rate:.1f}"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "show"))
    parser.add_argument("paths", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--methods", default="best,lpp,clp", help="separated by commas")
    args = parser.parse_args()
    if args.what == "show":
        print(table(rows()), end="")
        return
    torch.set_num_threads(1)
    for folder in networks(args.paths):
        for text in args.methods.split(","):
            if any((row["network"], row["method"]) == (name_of(folder), text) for row in rows()):
                continue
            if not allowed(trained.read(folder)[0]):
                continue
            try:
                row = measure(folder, text)
            except UnbackdoorError as error:
                print(f"{folder}, {text}: {error}", flush=True)
                continue
            with ROWS.open("a") as stream:
                stream.write(json.dumps(row, sort_keys=True) + "\n")
            print(f"{folder.name}, {text}: {row['before']} -> {row['after']}, {row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
