"""Writes the generated parts of the documentation: run `python docs/make_tables.py` after each change.

A page keeps its prose. The text between `<!-- NAME -->` and `<!-- end of NAME -->` is replaced by what the function in
SECTIONS returns. With --check nothing is written, and the exit status is 1 if a page is out of date.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unbackdoor.attacks import ATTACKS, Attack, TrainingControl
from unbackdoor.attacks import presets_of as attack_presets_of
from unbackdoor.defences.table import DEFENCES, presets_of
from unbackdoor.detectors import DETECTORS
from unbackdoor.leaderboard import Claim, read_grids, text
from unbackdoor.leaderboard.tables import Sheet
from unbackdoor.papers import Published
from unbackdoor.settings import Setting, settings_of, written

HERE = Path(__file__).parent
CLAIMS = HERE.parent / "results" / "claims"
CLEAN_COST = HERE.parent / "studies" / "clean_cost.json"


def attacks_overview() -> str:
    """One row per attack."""
    rows = []
    for name in ATTACKS:
        kind = ATTACKS[name]
        rows.append(
            (
                f"[`{name}`](#{name})",
                kind.title,
                cited(kind),
                "training control" if issubclass(kind, TrainingControl) else "data poisoning",
                "kept (clean label)" if kind.clean_label else "the target",
                "no" if kind.clean_label else "yes",
                "yes" if kind.needs_classifier else "no",
                ", ".join(f"`@{preset}`" for preset in attack_presets_of(kind)),
            )
        )
    header = ("`--attack`", "attack", "paper", "kind", "labels", "all-to-all", "needs `--surrogate`", "presets")
    return table(header, rows)


def attacks_common() -> str:
    """The settings that every attack has."""
    return settings_table(Attack, settings_of(Attack))


def attacks_one_by_one() -> str:
    """One section per attack."""
    parts = []
    for name in ATTACKS:
        kind = ATTACKS[name]
        own = [name for name in settings_of(kind) if name not in settings_of(Attack)]
        parts.append(f"### {name}")
        parts.append(introduced(kind))
        parts.append(settings_table(kind, own) if own else "No settings of its own.")
        parts += departures_of(kind)
    return "\n\n".join(parts)


def defences_overview() -> str:
    """One row per method."""
    rows = []
    for name in _methods():
        kind = DEFENCES[name]
        rows.append(
            (
                f"[`{name}`](#{name})",
                kind.title,
                cited(kind),
                kind.needs,
                "yes" if kind.needs_labels else "no",
                "yes" if kind.needs_gradients else "no",
                kind.passes,
                ", ".join(f"`{preset}`" for preset in presets_of(kind)),
            )
        )
    header = ("`--method`", "method", "paper", "needs", "labels", "gradients", "passes over the images", "`--preset`")
    return table(header, rows)


def defences_one_by_one() -> str:
    """One section per method."""
    parts = []
    for name in _methods():
        kind = DEFENCES[name]
        parts += [f"### {name}", introduced(kind), settings_table(kind, settings_of(kind))]
        parts += departures_of(kind)
        if kind.needs == "nothing" and kind.paper is not None:
            parts.append("*Departures* from the printed text and the published code: see [fidelity.md](fidelity.md).")
        if kind.needs == "nothing" and kind.paper is None:
            parts.append("How it works, how it was found and what it comes to: [repairs.md](repairs.md).")
    return "\n\n".join(parts)


def detectors_one_by_one() -> str:
    """One section per detector."""
    parts = []
    for name in DETECTORS:
        kind = DETECTORS[name]
        parts += [f"### {name}", introduced(kind), f"Needs {kind.needs}."]
        parts.append(settings_table(kind, settings_of(kind)))
        parts += departures_of(kind)
    return "\n\n".join(parts)


def _methods() -> list[str]:
    """The data-free ones first."""
    return sorted(DEFENCES, key=lambda name: (DEFENCES[name].needs != "nothing", name))


def clean_cost() -> str:
    """What LPP's variants cost networks without a backdoor: one row per variant, one column per network."""
    found = json.loads(CLEAN_COST.read_text(encoding="utf-8"))
    networks = list(next(iter(found["rows"].values())))
    rows = [(variant, *(_cost(figures[name]) for name in networks)) for variant, figures in found["rows"].items()]
    return f"From `{found['command']}`:\n\n" + table(("variant", *(f"`{name}`" for name in networks)), rows)


def _cost(figures: dict[str, Any]) -> str:
    done = f" ({figures['pruned']} + {figures['scaled']})" if "pruned" in figures else ""
    return f"{figures['acc']:.2f}{done}"


def ablations() -> str:
    """The result of each choice of LPP on the networks kept apart."""
    return _networks("small-ablations")


def misses() -> str:
    """The same on networks that LPP does not repair."""
    return _networks("small-misses")


def _networks(name: str) -> str:
    """One row per method, one column per network: ACC / ASR."""
    [grid] = [grid for grid in read_grids(CLAIMS) if grid.name == name]
    claims = [claim for claim in grid.own if claim.acc is not None]
    several = len({claim.data for claim in claims}) > 1

    def network(claim: Claim) -> tuple[str, str, int]:
        return claim.names["data"] if several else "", claim.names.get("attack", "clean"), claim.seed

    networks = sorted({network(claim) for claim in claims})
    cells = {(claim.method, *network(claim)): _rates(claim) for claim in claims}
    methods = sorted(dict.fromkeys(c.method for c in claims), key=lambda m: (m != "none", m != "lpp", m))
    rows = [(f"`{m}`", *(cells.get((m, *network), "") for network in networks)) for m in methods]
    return table(("", *(f"{data} {attack}, seed {seed}".strip() for data, attack, seed in networks)), rows)


def _rates(claim: Claim) -> str:
    assert claim.acc is not None
    return f"{claim.acc.percent:.2f}" + (f" / {claim.asr.percent:.2f}" if claim.asr is not None else "")


def beside_the_paper() -> str:
    """LPP's cells that the paper prints too: the ASR before, our result, the paper's, and the difference."""
    rows = []
    for grid in read_grids(CLAIMS):
        for shown in Sheet.of(grid).tables:
            for (line, column), entry in shown.entries.items():
                if line.method == "lpp" and entry.paper is not None and entry.acc is not None and grid.paper:
                    rate = "" if column.clean or shown.rate is None else f", {100 * shown.rate:g} %"
                    said, less = text.paper(entry).removeprefix("paper ").split(", ")
                    before = shown.asr_before(column)
                    met = "" if before is None else f"{before:.2f}" + ("" if column in shown.established else " †")
                    rows.append((shown.titles["data"], column.title + rate, met, text.both(entry), said, less))
    return table(("data", "network", "ASR before", "LPP here", "paper", "difference"), sorted(set(rows)))


def what_to_expect() -> str:
    """CIFAR-10 at 10 %: no defence, LPP and CLP on every seed."""
    [grid] = [grid for grid in read_grids(CLAIMS) if grid.name == "small-cifar10"]
    shown = next(table for table in Sheet.of(grid).plain if table.every_seed)
    lines = sorted(shown.lines, key=lambda line: ["none", "lpp", "clp"].index(line.method))
    rows = [(column.title, *(text.both(shown.entries[line, column]) for line in lines)) for column in shown.columns]
    return table(
        ("ACC / ASR, %", *(line.title.lower() if line.method == "none" else line.title for line in lines)), rows
    )


SECTIONS = {
    "../README.md": {"what to expect": what_to_expect},
    "attacks.md": {
        "overview": attacks_overview,
        "common settings": attacks_common,
        "one by one": attacks_one_by_one,
    },
    "defences.md": {
        "overview": defences_overview,
        "one by one": defences_one_by_one,
        "detectors": detectors_one_by_one,
    },
    "fidelity.md": {
        "clean cost": clean_cost,
        "ablations": ablations,
        "misses": misses,
        "beside the paper": beside_the_paper,
    },
}


def departures_of(kind: type) -> list[str]:
    """Where a method departs from its paper, as its module's docstring lists it: a sentence, or a list."""
    paragraphs = (inspect.getdoc(sys.modules[kind.__module__]) or "").split("\n\n")
    text = next((x.removeprefix("Departures:") for x in paragraphs if x.startswith("Departures:")), "")
    first, *items = (" ".join(part.split()) for part in text.split("\n    - "))
    if items:
        return ["*Departures:*", "\n".join(f"- {item}" for item in items)]
    return [f"*Departures:* {first}"] if first else []


def paragraphs_of(documented: object) -> list[str]:
    """A docstring's paragraphs, each on one line."""
    return [" ".join(text.split()) for text in (inspect.getdoc(documented) or "").split("\n\n")]


def cited(kind: type[Published]) -> str:
    """Its source, with links."""
    text = kind.source()
    if kind.paper is not None:
        text = text.replace(kind.paper.short, f"[{kind.paper.short}]({kind.paper.url})")
    if kind.settings_from is not None:
        text = text.replace("BackdoorBench", f"[BackdoorBench]({kind.settings_from.url})")
    return text


def introduced(kind: type[Published]) -> str:
    """The first paragraph of its file, its paper in full."""
    paragraph, paper = paragraphs_of(sys.modules[kind.__module__])[0], kind.paper
    if paper is None:
        return paragraph
    full = ", ".join(filter(None, (paper.names, f"[{paper.title}]({paper.url})", f"{paper.venue} {paper.year}")))
    return paragraph.replace(paper.short, full)


def settings_table(cls: type, names: Iterable[str]) -> str:
    """A row a hyper-parameter."""
    rows = [_setting_row(name, getattr(cls, name), settings_of(cls)[name]) for name in names]
    return table(("setting", "default", "allowed", "meaning", "whose default"), rows)


def _setting_row(name: str, default: Any, about: Setting) -> tuple[str, ...]:
    allowed = ", ".join(f"`{written(choice)}`" for choice in about.choices) or about.bounds or "any"
    return f"`{name}`", f"`{written(default)}`", allowed, about.meaning, "this package's" if about.own else ""


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def rewritten(page: str, text: str) -> str:
    """A page's text with its generated parts replaced; ValueError if the markers of one are missing."""
    for name, make in SECTIONS[page].items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{page}: expected {begin.strip()} and {end}")
        text = f"{head}{begin}\n{make()}\n\n{end}{tail}"
    return text


def main(arguments: list[str]) -> int:
    """Returns 0 if all pages are up to date; without --check it brings them up to date first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(arguments).check
    stale = 0
    for page in SECTIONS:
        path = HERE / page
        old = path.read_text(encoding="utf-8")
        new = rewritten(page, old)
        if new != old:
            if check:
                stale += 1
                print(f"{path.name}: out of date; run python docs/make_tables.py", file=sys.stderr)
            else:
                path.write_text(new, encoding="utf-8")
    return int(stale > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
