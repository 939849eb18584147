"""What the witnesses say, as text: blocks of lines, which the report of a scan shows, too."""

from __future__ import annotations

import textwrap

from unbackdoor.findings import NO_PROOF, Witness
from unbackdoor.report import summary
from unbackdoor.report.escape import short, visible

COLUMNS = 100
#: Classes in the table.
LISTED = 10
#: A witness -> what it asks.
MEANINGS = {
    "head": "how far the classifier's input must move",
    "stimulation": "how many answers single channels move",
    "channels": "how few channels together are enough",
    "reconstruction": "how small a trigger is enough",
}


def render(found: Witness) -> str:
    """The whole finding."""
    head = [f"unbackdoor witness: {short(found.source, 76) if found.source else 'a model in memory'}"]
    if found.arch:
        head.append(f"  architecture  {short(found.arch, 80)}")
    return "\n\n".join("\n".join(block) for block in [head, *blocks(found)]) + "\n"


def headline(found: Witness) -> str:
    """What they say together, in one or two sentences."""
    networks = summary.count(found.honest, "honest network")
    if found.p is None:
        return f"The witnesses cannot tell: {'; '.join(found.notes[:1])}."
    if found.suspect is None:
        return f"No class is suspected (p = {found.p:.3g} beside {networks}). {NO_PROOF}"
    more = f"; after it {', '.join(map(str, found.suspects[1:]))}" if found.suspects[1:] else ""
    least = ", the smallest possible" if found.p <= found.least else ""
    return (
        f"Class {found.suspect} is suspected{more}: it stands out more than classes of honest networks do "
        f"(p = {found.p:.3g}{least} with {networks}). This is a reason to look, not a proof."
    )


def blocks(found: Witness) -> list[list[str]]:
    """Headline, classes, triggers, channels, notes."""
    result = [_wrap(f"{'SUSPECTED: ' if found.suspects else ''}{headline(found)}"), _table(found)]
    if found.triggers:
        result.append(
            [
                "Smallest triggers, reconstructed:",
                *(
                    f"  class {one.label}: {sized(one.form, one.size)}, sends {one.moved:.0%} of the generated images "
                    "there"
                    for one in found.triggers
                ),
            ]
        )
    if found.channels:
        result.append(
            [
                "Channels that push most (share of the answers moved to a class if the channel fires):",
                *(
                    f"  {short(one.layer, 50)}[{one.channel}] to class {one.label}: {one.moved:.0%}"
                    for one in found.channels
                ),
            ]
        )
    notes = [line for name, why in found.missing.items() for line in _wrap(f"{name} could not look: {why}", "  ")]
    notes += [line for note in found.notes for line in _wrap(note, "  ")]
    return [*result, ["Notes on the witnesses:", *notes]] if notes else result


def sized(form: str, size: float) -> str:
    """A trigger's form and size."""
    return f"a mask of {size:.1f} pixels" if form == "mask" else f"a pattern added, of norm {size:.2f}"


def _table(found: Witness) -> list[str]:
    names = list(MEANINGS)
    rows = [("class", *names, "largest z", "")]
    ranked = found.ranked
    for one in ranked[:LISTED]:
        scores = (summary.signed(one.scores.get(name)) for name in names)
        rows.append(
            (str(one.label), *scores, summary.signed(one.z), "suspected" if one.label in found.suspects else "")
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(room) for cell, room in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(ranked) > LISTED:
        lines.append(f"  ... and {len(ranked) - LISTED:,} more; the JSON report has all")
    about = (
        "Scores: robust deviations from the median of the classes; for stimulation and channels, factors of two ahead "
        "of the next class. z: deviations from the largest scores of honest networks"
    )
    limit = "" if found.limit is None else f"; a class is suspected above {found.limit:+.2f}"
    return [*lines, *_wrap(f"{about}{limit}.")]


def _wrap(text: str, first: str = "") -> list[str]:
    return textwrap.wrap(
        visible(text), COLUMNS, initial_indent=first, subsequent_indent=first and first + "  ", break_on_hyphens=False
    )
