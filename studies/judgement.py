"""The final tables: witnesses, damage meter and repairs, on the half of the population that nothing was tuned on.

    python studies/judgement.py measure STORE/training         # appends rows of the witnesses and of the damage meter
    unbackdoor bench run grids/population/repairs.toml --store STORE --only established --threads 1
    python studies/judgement.py keep --store STORE             # writes what the repairs did to judgement_repairs.json
    python studies/judgement.py show -o FOLDER                 # writes tables.md and the ROC curves

This is the only study that reads the judgement half. `measure` takes no network of the other half, passes over what is
there already, and looks at no network whose attack did not take: it is only counted. Witnesses are judged by the clean
networks that ship with the package, and the meter has the package's coefficients: nothing is fitted here.

In brackets are 95 % intervals: Wilson's of shares, a bootstrap's over networks of everything else. A network is
repaired if its ASR is at most 10 % and it lost at most 3 points of accuracy. A method that cannot work on a network
leaves it as it is, and counts like that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import damage
import population
import repairs
import trained
import witnesses
from trained import Row
from unbackdoor.defender import meter
from unbackdoor.defender.clean_networks import clean_networks
from unbackdoor.experiments import Store, read_grid

HERE = Path(__file__).parent
GRID = HERE.parent / "grids" / "population" / "repairs.toml"
#: Test images on which an edit's true loss is measured.
IMAGES = 1000


def is_judged(config: Row) -> bool:
    """Whether a network's pair is of the judgement half."""
    pair = witnesses.pair_of(config)
    return any((one.data, one.arch, one.recipe) == pair for one in population.halves()["judgement"])


def seen(row: Row) -> bool:
    """Whether the other half has a network of this architecture, by another recipe."""
    return any(pair.arch == row["arch"] for pair in population.halves()["calibration"])


def took(row: Row) -> bool:
    """Whether a network stays: it is clean, or its attack took."""
    return row["asr"] is None or bool(row["asr"] >= witnesses.TOOK)


def witnessed(folder: Path) -> list[Row]:
    """The witnesses' row; of a network whose attack did not take, only what is true of it."""
    row = witnesses.truth(folder)
    return [witnesses.measure(folder) if took(row) else row]


def damaged(folder: Path) -> list[Row]:
    """The meter's rows, if the attack took."""
    row = witnesses.truth(folder)
    if not took(row):
        return []
    return [{**edit, "network": row["network"]} for edit in damage.measure(folder, IMAGES, None)]


def measure(paths: list[Path], file: Path, rule: Callable[[Path], list[Row]]) -> None:
    """Append the rows of the networks of this half that are not in a file."""
    witnesses.append(_folders(paths), file, rule)


def _folders(paths: list[Path]) -> Iterator[Path]:
    return (folder for folder in witnesses.networks(paths) if is_judged(trained.read(folder)[0]))


def tables(repaired: tuple[list[Row], str] | None, witness: list[Row], edits: list[Row], plots: Path) -> str:
    """Everything that was measured, as Markdown; ROC curves go into a folder."""
    parts = ["# The judgement half\n", *(__doc__ or "").strip().split("\n\n")[-1:], "\n## Repairs\n"]
    if repaired is not None and repaired[0]:
        rows, which = repaired
        same = repairs.shared(rows)
        parts += [which + "\n", repairs.summary(rows)]
        if 0 < len(same) < len(rows):
            parts += ["\n## Repairs, networks on which every method was run\n", repairs.summary(same)]
        parts += ["\n## Repairs, every network\n", repairs.listed(rows)]
    else:
        parts.append("None was run.\n")
    parts.append("\n## Witnesses\n")
    parts.append(witnesses.show(witness, clean_networks(), plots=plots) if witness else "No network was looked at.\n")
    for title, some in (
        ("Damage meter", edits),
        ("Damage meter, architectures that no fit has seen", [row for row in edits if not seen(row)]),
    ):
        parts += [f"\n## {title}\n", damage.show(some, meter.coefficients()) if some else "Nothing was measured.\n"]
    return "\n".join(parts)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "keep", "show"))
    parser.add_argument("paths", nargs="*", type=Path, metavar="FOLDER", help="networks, or a store's training/")
    parser.add_argument("--store", type=Path, help="for keep: the store with the repairs")
    parser.add_argument("--grid", type=Path, default=GRID, help="the grid of repairs [%(default)s]")
    parser.add_argument("--rows", type=Path, default=HERE, help="folder of judgement_* [%(default)s]")
    parser.add_argument("-o", "--output", type=Path, default=Path("judgement"))
    args = parser.parse_args()
    witness, edits = (args.rows / f"judgement_{name}.jsonl" for name in ("witnesses", "damage"))
    if args.what == "measure":
        torch.set_num_threads(1)
        measure(args.paths, witness, witnessed)
        measure(args.paths, edits, damaged)
        return
    kept = args.rows / "judgement_repairs.json"
    if args.what == "keep":
        if args.store is None:
            parser.error("keep: expected --store")
        rows, which = repairs.stored(read_grid(args.grid), Store(args.store, make=False))
        lines = ",\n".join(json.dumps(row) for row in rows)
        kept.write_text(f'{{"which": {json.dumps(which)}, "rows": [\n{lines}\n]}}\n')
        print(which)
        return
    repaired = None
    if kept.exists():
        found = json.loads(kept.read_text())
        repaired = found["rows"], found["which"]
    args.output.mkdir(parents=True, exist_ok=True)
    text = tables(repaired, trained.rows(witness), trained.rows(edits), args.output)
    (args.output / "tables.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
