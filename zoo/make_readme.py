"""Write zoo/README.md from the records beside the networks, and from what LPP and CLP do to each.

    python zoo/make_readme.py [--data-dir DIR]

ACC, ASR and RA of the networks as they came are read from their records; those of the repaired ones are measured here,
on the whole test set, with the methods' default settings. Needs the data sets.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from unbackdoor.attacks import load_attack
from unbackdoor.data import LabelledImages, load_dataset
from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.metrics import Evaluation, Rate
from unbackdoor.model_files import load_model
from unbackdoor.train import measure

ZOO = Path(__file__).parent
HEAD = """# A small zoo

Real networks, honestly trained, one folder each: `model.safetensors` (bfloat16), the attack with its trigger
(`attack.json`, `attack.safetensors`), `record.json` (command, settings, versions, rates on the whole test set) and
`log.jsonl`. None was chosen among several or made to suit a defence: what LPP and CLP (default settings) do to
each stands beside it, whatever that is. ACC: clean test images answered rightly; ASR: triggered test images of other
classes answered with the attacker's class. The data sets are JPEG copies, so that accuracies come out a little low.

WaNet was trained for 15 epochs first, like the others; its ASR was then 52.57 %, no established attack, and so it got
60. The minutes are those of a machine that had other work.

This file is written by `python zoo/make_readme.py`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    options = parser.parse_args()
    torch.set_grad_enabled(mode=False)
    tests: dict[str, LabelledImages] = {}
    rows, commands = [], []
    for folder in sorted(path.parent for path in ZOO.glob("*/record.json")):
        record = json.loads((folder / "record.json").read_text())
        data = record["data"]["name"]
        if data not in tests:
            tests[data] = load_dataset(data, "test", options.data_dir)
        rows.append(_row(folder, record, tests[data]))
        commands.append(f"    {record['command']} -o zoo/{folder.name}")
    table = [
        "| network | poisoned | epochs | ACC | ASR | LPP: ACC | LPP: ASR | CLP: ACC | CLP: ASR | minutes to train |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    text = "\n".join([HEAD, *table, "", "The commands:", "", *commands, ""])
    (ZOO / "README.md").write_text(text)
    print(text)


def _row(folder: Path, record: dict[str, Any], test: LabelledImages) -> str:
    attack = load_attack(folder / "attack.json") if record["attack"] else None
    model = load_model(folder / "model.safetensors").float()
    before = record["result"]
    cells = [folder.name, _poisoned(record), str(record["recipe"]["epochs"])]
    cells += [_share(before["acc"]), _share(before["asr"])]
    for method in (LPP(), CLP()):
        after: Evaluation = measure(method(model).model, test, attack)
        cells += [_percent(after.acc), _percent(after.asr)]
    cells.append(f"{record['seconds'] / 60:.0f} ({record['hardware']['threads']} threads)")
    return "| " + " | ".join(cells) + " |"


def _poisoned(record: dict[str, Any]) -> str:
    if not record["attack"]:
        return "none"
    count = record["poisoned_images"]
    if count is None:
        return f"{record['rate']:.0%} of each batch"
    return f"{count:,} of {record['data']['train_images']:,}"


def _share(rate: dict[str, Any] | None) -> str:
    return "" if rate is None or rate["value"] is None else f"{rate['value']:.2%}"


def _percent(rate: Rate | None) -> str:
    return "" if rate is None or rate.value is None else f"{rate.value:.2%}"


if __name__ == "__main__":
    main()
