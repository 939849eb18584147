"""Write zoo/README.md and zoo/DEFENCES.md from the records beside the networks and in zoo/defences/.

    python zoo/make_readme.py

Nothing is measured here: `unbackdoor train` wrote the networks' records, `python zoo/defend_all.py` those of the
defences.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from defend_all import DATA_FREE_ALONE, METHODS, NETWORKS, POISONED, RECORDS, THREE_SEEDS, Cell, data_free

Record = dict[str, Any]

ZOO = Path(__file__).parent
HEAD = """# A small zoo

Real networks, honestly trained, one folder each: `model.safetensors` (bfloat16), the attack with its trigger
(`attack.json`, `attack.safetensors`), `record.json` (command, settings, versions, rates on the whole test set) and
`log.jsonl`. None was chosen among several or made to suit a defence: what LPP and CLP (default settings) do to
each stands beside it, whatever that is; what every other method does to them is in [DEFENCES.md](DEFENCES.md).
ACC: clean test images answered rightly; ASR: triggered test images of other classes answered with the attacker's class.
The data sets are JPEG copies, so that accuracies come out a little low.

WaNet was trained for 15 epochs first, like the others; its ASR was then 52.57 %, no established attack, and so it got
60. SIG poisons every image of its class at 10 %, so that little is left to tell that class by. The minutes are those of
a machine that had other work.

This file is written by `python zoo/make_readme.py`.
"""
DEFENCES_HEAD = """# Every method against the zoo

Made by `python zoo/defend_all.py` (a record a cell in [defences/](defences/)) and `python zoo/make_readme.py`.
ResNet-18 of width 16; the methods' default settings ([this package's own](../docs/fidelity.md) are LPP's cuts and the
repair of its text, CLP's eps, I-BAU's radius, RNP's threshold by held-out images), or the preset that stands beside a
name; clean images are a share of the training part, drawn whatever their class. Rates are those of the whole test set;
nothing was chosen by them. RA: triggered images answered with their own class. DER: 0.5 is no change, 1 a full repair
for nothing. Seconds are those of one torch thread on a machine that had other work: what methods cost beside each other
is in `benchmarks/defence_speed.json`. EP is given a sample of the poisoned training set ({poisoned:.0%} of it with the
trigger), which the others are not; LPP and CLP are given nothing.

A method whose ACC falls far was run as published all the same; the training curves are in its record.
"""


def main() -> None:
    rows, commands = [], []
    for folder in sorted(path.parent for path in ZOO.glob("*/record.json")):
        record = json.loads((folder / "record.json").read_text())
        rows.append(_network(folder.name, record))
        commands.append(f"    {record['command']} -o zoo/{folder.name}")
    table = [
        "| folder | network | poisoned | epochs | ACC | ASR | LPP: ACC | LPP: ASR | CLP: ACC | CLP: ASR "
        "| minutes to train |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    (ZOO / "README.md").write_text("\n".join([HEAD, *table, "", "The commands:", "", *commands, ""]))
    (ZOO / "DEFENCES.md").write_text("\n".join(_defences()))


def _network(name: str, record: Record) -> str:
    cells = [name, record["arch"].rpartition(",num_classes=")[0], _poisoned(record), str(record["recipe"]["epochs"])]
    cells += [_share(record["result"]["acc"]), _share(record["result"]["asr"])]
    for method in ("lpp", "clp"):
        after = (_read(Cell(name, method, 0, 0)) or {"after": {"acc": None, "asr": None}})["after"]
        cells += [_share(after["acc"]), _share(after["asr"])]
    cells.append(f"{record['seconds'] / 60:.0f} ({record['hardware']['threads']} threads)")
    return _row(cells)


def _defences() -> list[str]:
    networks = [x for x in NETWORKS if x not in DATA_FREE_ALONE and (ZOO / x / "record.json").exists()]
    lines = [DEFENCES_HEAD.format(poisoned=POISONED), "## ACC / ASR in percent, 5 % clean images", ""]
    lines += [
        _row(["method", *(name.removeprefix("cifar10_") for name in networks)]),
        "|---" * (len(networks) + 1) + "|",
    ]
    before = [json.loads((ZOO / name / "record.json").read_text())["result"] for name in networks]
    lines.append(_row(["as it came", *(_pair(result) for result in before)]))
    for method in METHODS:
        found = [_read(_cell(name, method, 0.05, 0)) for name in networks]
        lines.append(_row([_named(method), *(_outcome(record) for record in found)]))
    for name in networks:
        lines += [
            "",
            f"## {name}, 5 % clean images",
            "",
            _row(["method", "ACC", "ASR", "RA", "DER", "pruned", "seconds"]),
        ]
        lines.append("|---|---|---|---|---|---|---|")
        for method in METHODS:
            lines.append(_full(method, _read(_cell(name, method, 0.05, 0))))
    for name in THREE_SEEDS:
        head = ["method", "ACC", "ASR", "ACC of each", "ASR of each"]
        lines += [
            "",
            f"## {name}, 1 % clean images, three draws of them: mean",
            "",
            _row(head),
            "|---|---|---|---|---|",
        ]
        for method in METHODS:
            if not data_free(method):
                lines.append(_seeds(method, [_read(Cell(name, method, 0.01, seed)) for seed in (0, 1, 2)]))
    return [*lines, ""]


def _cell(network: str, method: str, share: float, seed: int) -> Cell:
    return Cell(network, method, 0, 0) if data_free(method) else Cell(network, method, share, seed)


def _read(cell: Cell) -> Record | None:
    """A cell's record, if it has one."""
    path = RECORDS / cell.file.name
    record: Record | None = json.loads(path.read_text()) if path.exists() else None
    return record


def _outcome(record: Record | None) -> str:
    if record is None:
        return "not run"
    return "failed" if "failed" in record else _pair(record["after"])


def _full(method: str, record: Record | None) -> str:
    if record is None or "failed" in record:
        return _row([_named(method), "not run" if record is None else f"failed: {record['failed']}", *[""] * 5])
    after = record["after"]
    der = "" if record["der"] is None else f"{record['der']:.3f}"
    pruned = str(record["pruned"]) + (f" (+{record['scaled']} shrunk)" if record["scaled"] else "")
    rates = [_share(after[rate]) for rate in ("acc", "asr", "ra")]
    return _row([_named(method), *rates, der, pruned, f"{record['seconds']:.1f}"])


def _seeds(method: str, records: list[Record | None]) -> str:
    done = [record["after"] for record in records if record is not None and "failed" not in record]
    if len(done) < len(records):
        return _row([_named(method), f"{len(done)} of {len(records)} run", "", "", ""])
    values = [[after[rate]["value"] for after in done] for rate in ("acc", "asr")]
    means = [f"{statistics.mean(v):.2%}" for v in values]
    return _row([_named(method), *means, *(", ".join(f"{x:.2%}" for x in v) for v in values)])


def _pair(rates: Record) -> str:
    asr = rates["asr"]
    acc = f"{100 * rates['acc']['value']:.2f}"
    return acc if asr is None or asr["value"] is None else f"{acc} / {100 * asr['value']:.2f}"


def _named(method: str) -> str:
    return method.replace("@", ", ")


def _poisoned(record: Record) -> str:
    if not record["attack"]:
        return "none"
    count = record["poisoned_images"]
    if count is None:
        return f"{record['rate']:.0%} of each batch"
    return f"{count:,} of {record['data']['train_images']:,}"


def _share(rate: Record | None) -> str:
    return "" if rate is None or rate["value"] is None else f"{rate['value']:.2%}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
