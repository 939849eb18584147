"""Small results in a few lines of text: rates, what differs between two files, and what a detector found."""

from __future__ import annotations

from collections.abc import Sequence

from unbackdoor.findings import NO_PROOF, Detection, Difference, Evaluation
from unbackdoor.report.escape import short, visible
from unbackdoor.report.summary import count

#: Channels listed of one tensor.
LISTED = 16


def rates(found: Evaluation) -> str:
    """A line a rate, with its counts."""
    width = max(4, *map(len, found.rates))
    shown = {name: "none" if rate.value is None else f"{rate.value:.2%}" for name, rate in found.rates.items()}
    return "".join(
        f"{name.upper():{width}} {shown[name]:>8}  ({rate.hits} of {rate.total})\n"
        for name, rate in found.rates.items()
    )


def rates_line(found: Evaluation) -> str:
    """Every rate that was measured, with its counts, on one line."""
    return "  ".join(
        f"{name.upper()} {rate.value:.2%} ({rate.hits} of {rate.total})"
        for name, rate in found.rates.items()
        if rate.value is not None
    )


def differences(found: Sequence[Difference]) -> str:
    """A line a tensor, and how many there are."""
    lines = [f"{short(one.name, 60)}: {_what(one)}\n" for one in found]
    return "".join(lines) + (
        f"{count(len(found), 'tensor')} differ{'s' if len(found) == 1 else ''}\n" if found else "no difference\n"
    )


def render(found: Detection) -> str:
    """A detector's findings: its input, its verdict, and a table with a row for each class."""
    names = list(found.classes[0].values) if found.classes else []
    rows = [("class", *names, "")]
    for one in found.classes:
        numbers = ("-" if one.values[name] is None else f"{one.values[name]:.4g}" for name in names)
        rows.append((str(one.label), *numbers, "suspicious" if one.suspicious else ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    if found.suspicious:
        verdict = f"Suspicious: class {', '.join(map(str, found.suspicious))}. This is a reason to look, not a proof."
    else:
        verdict = f"No class is suspicious. {NO_PROOF}"
    settings = " ".join(f"{key}={value}" for key, value in found.settings.items())
    head = [f"unbackdoor detect: {found.source or 'a model in memory'}", f"  {found.detector}  {settings}"]
    head.append(f"  {found.images:,} images, SHA-256 {found.digest}" if found.images else "  no images")
    return "\n".join(map(visible, [*head, "", verdict, "", *table, *("", *found.notes)])).rstrip() + "\n"


def _what(one: Difference) -> str:
    if one.kind != "values":
        return f"{one.kind} {one.detail}".strip()
    shown = ", ".join(map(str, one.channels[:LISTED])) + (", ..." if len(one.channels) > LISTED else "")
    return f"{len(one.channels)} of {one.total} channels: {shown}"
