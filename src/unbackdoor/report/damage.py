"""A prediction of damage as text."""

from __future__ import annotations

from unbackdoor.findings import Damage, Report
from unbackdoor.report.escape import visible

#: Classes named.
LISTED = 10


def render(found: Damage) -> str:
    """The loss with its interval, the classes that fell, what it rests on."""
    return "".join(visible(line) + "\n" for line in lines(found))


def lines(found: Damage) -> list[str]:
    """The same, a sentence or two each."""
    listed = [f"Predicted loss of accuracy: {found.summary}"]
    if found.fallen:
        shares = (f"{label} ({found.recall[label] or 0:.0%})" for label in found.fallen[:LISTED])
        more = "" if len(found.fallen) <= LISTED else f", and {len(found.fallen) - LISTED} more"
        listed.append(f"Classes that lost more than a tenth of their generated images: {', '.join(shares)}{more}")
    if found.apart is not None:
        share = found.recall[found.apart]
        still = "" if share is None else f"; of its own generated images it lost {share:.0%}"
        listed.append(f"Left out, as the class whose answers moved most: {found.apart}{still}")
    changed = ", ".join(f"{kind} {share:.0%}" for kind, share in found.changed.items())
    return [
        *listed,
        f"Answers that changed, by kind of generated image: {changed} (of {found.images} each)",
        f"The prediction is calibrated on {found.calibrated_on}; no image of the data was read.",
        *found.notes,
    ]


def of_report(report: Report) -> list[str]:
    """What a report says of the damage; nothing where it was not asked."""
    if report.damage is not None:
        return lines(report.damage)
    return [f"Loss of accuracy: not predicted, because {report.damage_unknown}"] if report.damage_unknown else []
