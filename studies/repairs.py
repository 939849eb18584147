"""What repairs without data do to networks whose answer is known.

    python studies/repairs.py measure FOLDER... --methods best,lpp,clp   # appends rows to repairs.jsonl
    python studies/repairs.py show                                       # the table, as Markdown

    Both with --further: the ten further networks (`studies/population.py`), on which nothing is tuned

Networks are those of `unbackdoor train`, or of a grid's store/training; of the population's pairs, only those of the
half for calibration are taken. A repair is told nothing: seed 0, no class, no image. ACC is measured on the whole test
set, ASR on its stamped images of other classes than the target, and recall on the target's own clean images. `measure`
passes over what is there already.

In the summary, a network is repaired if its ASR is at most 10 % and it lost at most 3 points of accuracy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import intervals
import trained
from trained import Row
from unbackdoor import metrics
from unbackdoor.attacks import load_attack
from unbackdoor.data import LabelledImages, load_dataset
from unbackdoor.defences.table import parse_method
from unbackdoor.errors import UnbackdoorError
from unbackdoor.experiments import Cell, Grid, Repair, Store, Training
from unbackdoor.findings import defence_effectiveness
from unbackdoor.prune import differ
from witnesses import TOOK, allowed, is_further, name_of, networks, pair_of, truth

ROWS = Path(__file__).with_suffix(".jsonl")
#: Of the ten further networks, on which nothing is tuned.
FURTHER = ROWS.with_stem("further_repairs")
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


def measure(folder: Path, text: str, *, seed: int = 0) -> Row:
    """The row of one network and method; the seed is of what the method draws."""
    config, _ = trained.read(folder)
    test = load_dataset(trained.source(config["data"]), "test")
    case = trained.case(folder, test.spec, seed=seed)
    before = rates(case.module, test, folder)
    started = time.process_time()
    outcome = parse_method(text).run(case)
    seconds = time.process_time() - started
    witness = outcome.report.witness
    return {
        **{key: value for key, value in truth(folder).items() if key not in ("acc", "asr")},
        "method": text,
        "before": before,
        "after": rates(outcome.model, test, folder),
        "suspects": None if witness is None else list(witness.suspects),
        "doubtful": outcome.report.doubtful,
        "changed": differ(case.module, outcome.model),
        "p": None if witness is None else witness.p,
        "story": list(outcome.report.story),
        "seconds": round(seconds, 1),
    }


def stored(grid: Grid, store: Store) -> tuple[list[Row], str]:
    """A grid's repairs in a store as rows, and which networks they are of.

    A method that cannot work on a network leaves it as it is; the row says why. Networks whose attack did not take are
    left out.
    """
    outcomes = list(store.outcomes(grid.cells))
    found: list[Row] = []
    before = {cell: record["result"]["rates"] for cell, _, record, _ in outcomes if _is_training(cell) and record}
    for cell, _key, record, _failure in outcomes:
        if isinstance(cell, Repair) and record:  # which has the recall that older trainings lack
            before[cell.training] = record["result"]["before"]
    took = {cell for cell, rates in before.items() if not rates["asr"] or rates["asr"]["value"] >= TOOK}
    for cell, _key, record, failure in outcomes:
        if not isinstance(cell, Repair) or cell.training not in took or (record is None and failure is None):
            continue
        result = {} if record is None else record["result"]
        training = cell.training
        own = {"before": result.get("before", before[training])}
        own["after"] = result.get("rates", own["before"])
        data, arch, recipe = pair_of({**training.config, "data": training.data.rpartition(":")[2]})
        found.append(
            {
                "network": f"training/{training.key(store.digests())}",
                "data": data,
                "arch": arch,
                "recipe": recipe,
                "seed": training.seed,
                "attack": training.config["attack"],
                "method": cell.method + ("" if cell.clean is None else f", {100 * cell.clean:g} %"),
                **{when: {name: rate["value"] for name, rate in rates.items() if rate} for when, rates in own.items()},
                "changed": result.get("changed", False),
                "suspects": result.get("suspects"),
                "doubtful": result.get("doubtful"),
                "refused": None if failure is None else failure["reason"],
                "seconds": result.get("method_seconds", 0.0),
            }
        )
    trainings = [cell for cell in grid.cells if _is_training(cell)]
    clean = sum(cell.attack is None for cell in took)
    return found, (
        f"{len(trainings)} networks, {len(before)} of them trained; {len(before) - len(took)} left, as their attack "
        f"did not take (ASR below {100 * TOOK:.0f} %); {clean} clean and {len(took) - clean} backdoored ones stay."
    )


def _is_training(cell: Cell) -> bool:
    return isinstance(cell, Training)


def table(found: list[Row]) -> str:
    """What is said of every network, then the summary; without networks whose attack did not take."""
    kept = [row for row in found if row["attack"] is None or row["before"].get("asr", 0) >= TOOK]
    return listed(kept) + "\n" + summary(kept)


def listed(kept: list[Row]) -> str:
    """A row a network and method, in percent."""
    lines = [
        "| network | attack | method | ACC | ASR | recall of the target | suspected | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(
        kept, key=lambda row: (row["data"], row["arch"], str(row["attack"]), row["network"], row["method"])
    ):
        cells = [
            f"{_percent(row['before'].get(key))} -> {_percent(row['after'].get(key))}"
            for key in ("acc", "asr", "recall")
        ]
        cells = [cell if "None" not in cell else "" for cell in cells]
        lines.append(
            f"| {row['arch']}, {row['data']} | {attack_of(row)} | {row['method']} | "
            + " | ".join(cells)
            + f" | {suspected(row)} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def shared(kept: list[Row]) -> list[Row]:
    """The rows of networks on which every method has one."""
    methods = {row["method"] for row in kept}
    on: dict[str, set[str]] = {}
    for row in kept:
        on.setdefault(row["network"], set()).add(row["method"])
    return [row for row in kept if on[row["network"]] == methods]


def suspected(row: Row) -> str:
    """The classes that a method suspected; in brackets one that it closed on a weak suspicion; empty where it does not
    look for one."""
    if row.get("suspects") is None:
        return ""
    closed = "none" if row.get("doubtful") is None else f"({row['doubtful']})"
    return ", ".join(map(str, row["suspects"])) or closed


def attack_of(row: Row) -> str:
    """An attack and its target."""
    attack = row["attack"]
    if attack is None:
        return "none"
    return f"{attack['name']} -> {'all' if attack.get('mapping') == 'all-to-all' else attack['target']}"


def summary(kept: list[Row]) -> str:
    """A row a method, with 95 % intervals by bootstrap over networks; then its ASR by attack."""
    lines = [
        "| method | networks | cannot | repaired | ACC | ASR | DER | loss of ACC | loss of recall | clean ones changed "
        "| their loss, largest |",
        "|---" * 11 + "|",
    ]
    methods = sorted({row["method"] for row in kept})
    for method in methods:
        mine = [row for row in kept if row["method"] == method]
        bad = [row for row in mine if row["attack"] is not None]
        honest = [row for row in mine if row["attack"] is None]
        gone = sum(row["after"]["asr"] <= GONE and lost(row, "acc") <= DEAR for row in bad)
        cells = [
            str(len(bad)),
            str(sum(bool(row.get("refused")) for row in mine)),
            intervals.share(gone, len(bad)),
            *(intervals.mean([100 * row["after"][name] for row in bad]) for name in ("acc", "asr")),
            intervals.mean([_der(row) for row in bad]),
            *(intervals.mean([lost(row, name) for row in bad]) for name in ("acc", "recall")),
            intervals.share(sum(row.get("changed", row["before"] != row["after"]) for row in honest), len(honest)),
            intervals.mean([lost(row, "acc") for row in honest])
            + (f", {max(lost(row, 'acc') for row in honest):.1f}" if honest else ""),
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    attacks = sorted({row["attack"]["name"] for row in kept if row["attack"] is not None})
    lines += ["", "| ASR / loss of ACC | " + " | ".join(attacks) + " |", "|---" * (len(attacks) + 1) + "|"]
    for method in methods:
        cells = []
        for attack in attacks:
            mine = [row for row in kept if row["method"] == method and (row["attack"] or {}).get("name") == attack]
            cells.append(
                f"{statistics.fmean(100 * row['after']['asr'] for row in mine):.1f} / "
                f"{statistics.fmean(lost(row, 'acc') or 0.0 for row in mine):.1f} ({len(mine)})"
                if mine
                else ""
            )
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def lost(row: Row, name: str) -> float | None:
    """Points of a rate that a repair took; None where the rate is not known."""
    before, after = row["before"].get(name), row["after"].get(name)
    return None if before is None or after is None else round(100 * (before - after), 9)


def _der(row: Row) -> float:
    rates = {f"{name}_{when}": row[when][name] for name in ("acc", "asr") for when in ("before", "after")}
    return 100 * defence_effectiveness(**rates)


def _percent(rate: float | None) -> str:
    return "None" if rate is None else f"{100 * rate:.1f}"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "show"))
    parser.add_argument("paths", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--methods", default="best,lpp,clp", help="separated by commas")
    parser.add_argument("--further", action="store_true", help=f"the ten further networks; rows are in {FURTHER.name}")
    args = parser.parse_args()
    file, taken = (FURTHER, is_further) if args.further else (ROWS, allowed)
    if args.what == "show":
        print(table(trained.rows(file)), end="")
        return
    torch.set_num_threads(1)
    for folder in networks(args.paths):
        for text in args.methods.split(","):
            if any((row["network"], row["method"]) == (name_of(folder), text) for row in trained.rows(file)):
                continue
            if not taken(trained.read(folder)[0]):
                continue
            try:
                row = measure(folder, text)
            except UnbackdoorError as error:
                print(f"{folder}, {text}: {error}", flush=True)
                continue
            with file.open("a") as stream:
                stream.write(json.dumps(row, sort_keys=True) + "\n")
            print(f"{folder.name}, {text}: {row['before']} -> {row['after']}, {row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
