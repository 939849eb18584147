"""What does each part of `best` do, and how much does chance decide?

    python studies/ablation.py measure FOLDER...     # networks of unbackdoor train; appends rows to ablation.jsonl
    python studies/ablation.py show                  # the tables, as Markdown

Every variant (`VARIANTS`) is run on every network, told nothing: `best` as it comes with five seeds, each repair alone,
surrogates of one kind alone, and fewer ways into the class. The witnesses are not run again: each alone judges the
networks of witnesses.jsonl. Whole test sets, one thread.

Of the population's pairs only those of the half for calibration are taken. `measure` passes over what is there already.
Needs the data sets.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

import intervals
import repairs
import trained
import witnesses
from trained import Row
from unbackdoor.defences.data_free import looking
from unbackdoor.defences.data_free.scene import CROPS, Pool, WaysIn
from unbackdoor.defender.case import Progress, silent
from unbackdoor.defender.look import WITNESSES, Look
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.photographs import photographs
from unbackdoor.defender.surrogates import LONG, class_images, dead_leaves
from unbackdoor.defender.ways_in import CHANNELS
from witnesses import allowed, name_of, networks

ROWS = Path(__file__).with_suffix(".jsonl")
SEEDS = range(5)

#: So many images of one kind.
Kind = Callable[[OnPixels, int, torch.Generator], Tensor]
#: What a variant changes while it runs.
Change = Callable[[], contextlib.AbstractContextManager[object]]


@contextlib.contextmanager
def surrogates(kind: Kind) -> Iterator[None]:
    """Repairs see images of one kind alone, as many as they see of all kinds by default, and averages of two of them.

    The look, and the crops of the class that a repair keeps, stay as they are.
    """

    def pool_of(shown: OnPixels, seen: Look, generator: torch.Generator, _progress: Progress = silent) -> Pool:
        count = len(seen.made.images)
        made = count + max(1, count // 2)
        whole = kind(shown, CROPS * count + made, generator)
        mixed = (whole[:made] + whole[-made:]) / 2
        images = torch.cat([whole, mixed])
        return Pool(images=images, logits=shown.logits(images), whole=len(whole))

    with mock.patch.object(looking, "pool_of", pool_of):
        yield


@contextlib.contextmanager
def fewer_ways(count: int) -> Iterator[None]:
    """Repairs close so many ways into the class, the easiest. What is left is told by as many as ever."""
    search = WaysIn._search

    def searched(self, shown, quick, progress, *, most=CHANNELS):  # type: ignore[no-untyped-def]
        triggers, ways = search(self, shown, quick, progress, most=most)
        return triggers, ways[:count] if most == CHANNELS else ways

    with mock.patch.object(WaysIn, "_search", searched):
        yield


#: What is run: the method, its seed, and what is changed for it.
VARIANTS: dict[str, tuple[str, int, Change]] = {
    **{f"best, seed {seed}": ("best", seed, contextlib.nullcontext) for seed in SEEDS},
    **{f"{name} alone": (name, 0, contextlib.nullcontext) for name in ("erase", "pushing", "forget")},
    "photographs alone": (
        "best",
        0,
        lambda: surrogates(lambda shown, count, generator: photographs(count, shown.spec, generator)),
    ),
    "class impressions alone": (
        "best",
        0,
        lambda: surrogates(lambda shown, count, generator: class_images(shown, count, generator, steps=LONG).images),
    ),
    "dead leaves alone": (
        "best",
        0,
        lambda: surrogates(lambda shown, count, generator: dead_leaves(count, shown.spec, generator)),
    ),
    **{f"{count} way{'s' * (count > 1)}": ("best", 0, lambda count=count: fewer_ways(count)) for count in (1, 4)},
}


def measure(folder: Path, variant: str) -> Row:
    """The row of one network and variant."""
    method, seed, change = VARIANTS[variant]
    with change():
        return {**repairs.measure(folder, method, seed=seed), "variant": variant}


def table(rows: list[Row]) -> str:
    """A line a variant: each network's ACC, ASR and recall; then the mean ASR and losses."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    first = {name: next(row for row in rows if row["network"] == name) for name in names}
    lines = [
        "| | " + " | ".join(f"{first[n]['arch']}, {repairs.attack_of(first[n])}" for n in names) + " | mean ASR "
        "| loss of ACC | of recall |",
        "|---" * (len(names) + 4) + "|",
        "| before | " + " | ".join(_told(first[name]["before"]) for name in names) + " | | | |",
    ]
    for variant in VARIANTS:
        mine = {row["network"]: row for row in rows if row["variant"] == variant}
        if not mine:
            continue
        cells = [_told(mine[name]["after"]) if name in mine else "" for name in names]
        whole = list(mine.values()) if len(mine) == len(names) else []  # means of fewer are no comparison
        cells += [
            intervals.mean([100 * row["after"]["asr"] for row in whole]),
            *(intervals.mean([repairs.lost(row, name) for row in whole]) for name in ("acc", "recall")),
        ]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _told(rates: Row) -> str:
    return f"{100 * rates['acc']:.1f}/{100 * rates['asr']:.1f}, {100 * rates['recall']:.0f}"


def spread(rows: list[Row]) -> str:
    """How far seeds lie apart: a line a network that all were run on."""
    lines = ["| network | ASR by seed | range | standard deviation |", "|---|---|---|---|"]
    for name in dict.fromkeys(row["network"] for row in rows):
        seeds = {row["variant"]: row for row in rows if row["network"] == name and row["variant"].startswith("best, ")}
        if len(seeds) < len(SEEDS):
            continue
        row, asr = next(iter(seeds.values())), [100 * seeds[f"best, seed {seed}"]["after"]["asr"] for seed in SEEDS]
        about = f"{row['arch']}, {row['data']}, {repairs.attack_of(row)}"
        told = ", ".join(f"{value:.1f}" for value in asr)
        lines.append(f"| {about} | {told} | {max(asr) - min(asr):.1f} | {statistics.stdev(asr):.1f} |")
    return "\n".join(lines) + "\n"


def alone(rows: list[Row]) -> str:
    """Each witness alone, and all together, on the networks of witnesses.jsonl: a line each."""
    lines = ["| witness | found | target named | false alarms |", "|---|---|---|---|"]
    for title, names in (*((name, (name,)) for name in WITNESSES), (witnesses.TOGETHER, WITNESSES)):
        kept = [row for row in rows if any(name in row["scores"] for name in names)]
        heard = [
            {**row, "scores": {name: row["scores"][name] for name in names if name in row["scores"]}} for row in kept
        ]
        found = witnesses.Judged.of(heard)
        flagged = [row for row in found.took if found.verdicts[row["network"]].suspects]
        aimed = [row for row in flagged if row["attack"].get("mapping") != "all-to-all"]
        named = [row for row in aimed if found.verdicts[row["network"]].suspects[0] == row["attack"]["target"]]
        alarms = [row for row in found.clean if found.verdicts[row["network"]].suspects]
        shares = ((len(flagged), len(found.took)), (len(named), len(aimed)), (len(alarms), len(found.clean)))
        lines.append(f"| {title} | " + " | ".join(intervals.share(*share) for share in shares) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "show"))
    parser.add_argument("paths", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--variants", default="", help=f"separated by semicolons: {'; '.join(VARIANTS)}")
    args = parser.parse_args()
    asked = [name.strip() for name in args.variants.split(";") if name.strip()] or list(VARIANTS)
    if unknown := [name for name in asked if name not in VARIANTS]:
        parser.error(f"--variants: expected some of {'; '.join(VARIANTS)}, got {unknown[0]!r}")
    if args.what == "show":
        rows = trained.rows(ROWS)
        print("\n".join((table(rows), spread(rows), alone(trained.rows(witnesses.ROWS)))), end="")
        return
    torch.set_num_threads(1)
    for variant in asked:
        for folder in networks(args.paths):
            config, _ = trained.read(folder)
            there = {(row["network"], row["variant"]) for row in trained.rows(ROWS)}
            if (name_of(folder), variant) in there or config["attack"] is None or not allowed(config):
                continue
            row = measure(folder, variant)
            with ROWS.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(f"{folder.name}, {variant}: {row['after']}, {row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
