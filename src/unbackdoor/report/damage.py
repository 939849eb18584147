"""A prediction of damage as text."""

from __future__ import annotations

from unbackdoor.findings import Damage
from unbackdoor.report.escape import visible

#: Classes named.
LISTED = 10


def render(found: Damage) -> str:
    """The loss with its interval, the classes that fell, what it rests on."""
    bounds = f"90 % of such losses: {found.low:.1f} to {found.high:.1f}"
    lines = [f"Predicted loss of accuracy: {found.loss:.1f} points ({bounds})"]
    if found.fallen:
        shares = (f"{label} ({found.recall[label] or 0:.0%})" for label in found.fallen[:LISTED])
        more = "" if len(found.fallen) <= LISTED else f", and {len(found.fallen) - LISTED} more"
        lines.append(f"Classes that lost more than a tenth of their generated images: {', '.join(shares)}{more}")
    changed = ", ".join(f"{kind} {share:.0%}" for kind, share in found.changed.items())
    lines += [
        f"Answers that changed, by kind of generated image: {changed}",
        f"The prediction is calibrated on {found.calibrated_on}; no image of the data was read.",
        *found.notes,
    ]
    return "".join(visible(line) + "\n" for line in lines)
