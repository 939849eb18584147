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

Trained networks to try methods on, one folder each:

- `model.safetensors`: the weights in bfloat16
- `attack.json`, `attack.safetensors`: the attack and its trigger
- `record.json`: command, settings, versions, rates on the whole test set
- `log.jsonl`: the training curves

No network was picked out of several or made to suit a defence. The table shows what LPP and CLP do to each at their
default settings. [DEFENCES.md](DEFENCES.md) shows every other method.

ACC is the accuracy: clean test images given their true class. ASR is the attack success rate: triggered test images of
other classes given the attacker's class. The data sets are JPEG copies, which lowers accuracies a little.

WaNet was first trained for 15 epochs, like the others. Its ASR of 52.57 % was too low for an established attack, so it
was trained for 60. At 10 %, SIG poisons every image of its class, so little is left by which to recognise that class.
The minutes are those of a machine that also did other work.

`python zoo/make_readme.py` writes this file.
"""
DEFENCES_HEAD = """# Every method against the zoo

The networks are ResNet-18 of width 16.

- **ACC**, accuracy: clean test images given their true class.
- **ASR**, attack success rate: triggered test images of other classes given the attacker's class.
- **RA**, robust accuracy: triggered images still given their true class.
- **DER**, defence effectiveness rating: 0.5 is no change, 1 is a full repair at no cost in accuracy.

Rates are over the whole test set, and nothing was chosen by them. A method on which ACC falls far was run as published
all the same. Its training curves are in its record.

**Settings.** Methods run at their defaults, or with the preset beside the name. Some defaults are [this package's
choice](../docs/fidelity.md): LPP's limits and the corrections to its text, CLP's eps, I-BAU's radius, and RNP's
threshold from held-out images.

**Images.** LPP and CLP use none. EP uses a sample of the poisoned training set, with the trigger on {poisoned:.0%} of
it. The other methods use clean images: a share of the training part, of any class.

**Seconds** are for one torch thread on a machine that also did other work. `benchmarks/defence_speed.json` compares the
cost of the methods.

`python zoo/defend_all.py` measures, and writes one record per cell to [defences/](defences/).
`python zoo/make_readme.py` writes this file.
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
    lines.append(_row(["no defence", *(_pair(result) for result in before)]))
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
