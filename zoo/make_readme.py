"""Write zoo/README.md and zoo/DEFENCES.md from the records beside the networks and the claims in zoo/claims/.

    python zoo/make_readme.py [--store DIR]

Nothing is measured here: `unbackdoor train` wrote the networks' records, and `unbackdoor bench run grids/zoo.toml`
fills a store with what methods do to them; --store takes its results over into the claims.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unbackdoor.experiments import Repair, Store, publish, read_grid
from unbackdoor.leaderboard import Claim, Count, read_grids, write_grid
from unbackdoor.leaderboard.claim_folder import merged

Record = dict[str, Any]

ZOO = Path(__file__).parent
CLAIMS = ZOO / "claims"
GRID = read_grid(ZOO.parent / "grids" / "zoo.toml")
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

`cifar10_mobilenetv2_clean` is not in the table: an honest network with depthwise convolutions, for the table of [what a
repair costs](../docs/fidelity.md#where-near-outliers-go). `record.json` has its command.

`python zoo/make_readme.py` writes this file.
"""
DEFENCES_HEAD = """# Every method against the zoo

The networks are ResNet-18 of width 16.

- **ACC**, accuracy: clean test images given their true class.
- **ASR**, attack success rate: triggered test images of other classes given the attacker's class.
- **RA**, robust accuracy: triggered images still given their true class.
- **DER**, defence effectiveness rating: 0.5 is no change, 1 is a full repair at no cost in accuracy.

Rates are over the whole test set, and nothing was chosen by them. A method on which ACC falls far was run as published
all the same. Its training curves are in its claim.

**Settings.** Methods run at their defaults, or with the preset beside the name. Some defaults are [this package's
choice](../docs/fidelity.md): LPP's limits and the corrections to its text, CLP's eps, I-BAU's radius, and RNP's
threshold from held-out images.

**Images.** LPP and CLP use none. EP uses a sample of the poisoned training set, with the trigger on {poisoned:.0%} of
it. The other methods use clean images: a share of the training part, of any class.

**Seconds** are for one torch thread on a machine that also did other work. `benchmarks/defence_speed.json` compares the
cost of the methods.

**†** marks results of older code of a method, which have not been run again. [What was
different](../docs/fidelity.md#results-that-wait-to-be-run-anew) is listed there.

`unbackdoor bench run grids/zoo.toml` measures. [claims/](claims/zoo) holds one file per result.
`python zoo/make_readme.py` writes this file.
"""


class Zoo:
    """The grid's repairs with what came of each."""

    def __init__(self) -> None:
        [grid] = read_grids(CLAIMS)
        self.own = {c.key for c in grid.own}
        repairs = sorted((c for c in grid.claims if c.kind == "repair"), key=lambda c: c.key in self.own)
        found = {(_network(c), c.method, c.clean, c.clean_seed): c for c in repairs}  # of two, the one of today's code
        self.claims: dict[str, dict[tuple[str, float | None], list[Claim | None]]] = {}
        for cell in GRID.cells:
            if isinstance(cell, Repair):
                network = _network(cell.training)
                draws = self.claims.setdefault(network, {}).setdefault((cell.method, cell.clean), [])
                draws.append(found.get((network, cell.method, cell.clean, cell.clean_seed)))
        self.records = {name: json.loads((ZOO / name / "record.json").read_text()) for name in sorted(self.claims)}

    def of(self, network: str, share: float) -> dict[str, list[Claim | None]]:
        """By method, those with a share of clean images and those that are given none."""
        return {m: draws for (m, clean), draws in self.claims[network].items() if clean in (None, share)}

    def mark(self, *claims: Claim | None) -> str:
        """Behind figures: a mark where one of them is of older code."""
        return " †" if any(claim is not None and claim.key not in self.own for claim in claims) else ""

    def all_methods(self) -> list[str]:
        """Names of the networks that every method is asked about."""
        return [name for name, found in self.claims.items() if any(clean for _, clean in found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    store = parser.parse_args().store
    if store is not None:
        write_grid(CLAIMS, merged(CLAIMS, publish(GRID, Store(store, make=False))))
    zoo = Zoo()
    (ZOO / "README.md").write_text("\n".join(_networks(zoo)))
    (ZOO / "DEFENCES.md").write_text("\n".join(_defences(zoo)))


def _network(of: Any) -> str:
    """The folder of a training's or a claim's network."""
    return f"{of.data}_{'clean' if of.attack in (None, 'none') else of.attack}"


def _networks(zoo: Zoo) -> list[str]:
    heads = ["folder", "network", "poisoned", "epochs", "ACC", "ASR"]
    heads += [*(f"{method}: {rate}" for method in ("LPP", "CLP") for rate in ("ACC", "ASR")), "minutes to train"]
    rows = []
    for name, record in zoo.records.items():
        cells = [name, record["arch"].rpartition(",num_classes=")[0], _poisoned(record), record["recipe"]["epochs"]]
        cells += [_percent(rate and rate["value"]) for rate in (record["result"]["acc"], record["result"]["asr"])]
        for method in ("lpp", "clp"):
            [claim] = zoo.of(name, 0)[method]
            cells += [_rate(claim.acc if claim else None), _rate(claim.asr if claim else None)]
        rows.append([*cells, f"{record['seconds'] / 60:.0f} ({record['hardware']['threads']} threads)"])
    commands = [f"    {record['command']} -o zoo/{name}" for name, record in zoo.records.items()]
    return [HEAD, *_table(heads, rows), "", "The commands:", "", *commands, ""]


def _defences(zoo: Zoo) -> list[str]:
    names = zoo.all_methods()
    heads = ["method", *(name.removeprefix("cifar10_") for name in names)]
    before = [{rate: found and found["value"] for rate, found in zoo.records[x]["result"].items()} for x in names]
    rows = [["no defence", *(_pair(rates["acc"], rates["asr"]) for rates in before)]]
    methods = {method: [zoo.of(name, 0.05)[method][0] for name in names] for method in zoo.of(names[0], 0.05)}
    rows += [[_named(m), *(_outcome(claim) + zoo.mark(claim) for claim in claims)] for m, claims in methods.items()]
    poisoned = next(cell.poisoned for cell in GRID.cells if isinstance(cell, Repair) and cell.poisoned)
    lines = [DEFENCES_HEAD.format(poisoned=poisoned), "## ACC / ASR in percent, 5 % clean images", ""]
    lines += _table(heads, rows)
    for name in names:
        rows = [_full(_named(method) + zoo.mark(claim), claim) for method, [claim] in zoo.of(name, 0.05).items()]
        lines += ["", f"## {name}, 5 % clean images", ""]
        lines += _table(["method", "ACC", "ASR", "RA", "DER", "pruned", "seconds"], rows)
    for name in names:
        rows = [
            _draws(_named(m) + zoo.mark(*draws), draws) for m, draws in zoo.of(name, 0.01).items() if len(draws) > 1
        ]
        if rows:
            lines += ["", f"## {name}, 1 % clean images, three draws of them: mean", ""]
            lines += _table(["method", "ACC", "ASR", "ACC of each", "ASR of each"], rows)
    return [*lines, ""]


def _named(method: str) -> str:
    """For a row."""
    return method.replace("@", ", ")


def _outcome(claim: Claim | None) -> str:
    if claim is None or claim.acc is None:
        return "not run" if claim is None else "failed"
    return _pair(claim.acc.percent / 100, claim.asr.percent / 100 if claim.asr else None)


def _full(name: str, claim: Claim | None) -> list[str]:
    if claim is None or claim.acc is None:
        return [name, "not run" if claim is None else f"failed: {claim.failed}", *[""] * 5]
    der = "" if claim.der is None else f"{claim.der:.3f}"
    pruned = f"{claim.pruned}" + (f" (+{claim.scaled} shrunk)" if claim.scaled else "")
    rates = [_rate(rate) for rate in (claim.acc, claim.asr, claim.ra)]
    return [name, *rates, der, pruned, f"{claim.seconds:.1f}"]


def _draws(name: str, claims: list[Claim | None]) -> list[str]:
    done = [(claim.acc, claim.asr) for claim in claims if claim is not None and claim.acc and claim.asr]
    if len(done) < len(claims):
        return [name, f"{len(done)} of {len(claims)} run", "", "", ""]
    values = [[count.percent / 100 for count in counts] for counts in zip(*done, strict=True)]
    means = [_percent(statistics.mean(shares)) for shares in values]
    return [name, *means, *(", ".join(map(_percent, shares)) for shares in values)]


def _pair(acc: float, asr: float | None) -> str:
    return f"{100 * acc:.2f}" + ("" if asr is None else f" / {100 * asr:.2f}")


def _poisoned(record: Record) -> str:
    if not record["attack"]:
        return "none"
    count = record["poisoned_images"]
    if count is None:
        return f"{record['rate']:.0%} of each batch"
    return f"{count:,} of {record['data']['train_images']:,}"


def _rate(count: Count | None) -> str:
    return "" if count is None else _percent(count.hits / count.total)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _table(heads: Iterable[object], rows: Iterable[Iterable[object]]) -> list[str]:
    whole = [list(heads), *rows]
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in whole]
    return [lines[0], "|---" * len(list(whole[0])) + "|", *lines[1:]]


if __name__ == "__main__":
    main()
