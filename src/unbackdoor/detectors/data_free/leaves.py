"""Leaves: which class does the network answer to images that show nothing? It needs no data.

A few hundred images of dead leaves are shown, discs and rectangles that cover each other (`defender.leaves`). An honest
network answers several classes to them. One that was taught a trigger over the whole image often answers the attacker's
class to nearly all. A patch in a corner, or a trigger that bends the image, does not show here. It takes one forward
pass an image, and no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from unbackdoor.defender.case import Case
from unbackdoor.defender.leaves import leaves
from unbackdoor.defender.on_pixels import on_pixels
from unbackdoor.detectors.base import DETECTORS, Found
from unbackdoor.detectors.data_free.base import DataFreeDetector
from unbackdoor.findings import ClassFinding
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class DeadLeaves(DataFreeDetector):
    """Find the class that is answered to images that show nothing."""

    name: ClassVar[str] = "leaves"
    title: ClassVar[str] = "Dead leaves"
    paper: ClassVar[None] = None

    score: float = setting(
        2.0, "a class is suspicious above this lead, in factors of two, over the next", least=0, most=1e6, own=True
    )

    def inspect(self, case: Case, model: nn.Module) -> Found:
        """The shares of the classes, then the one that is ahead."""
        network, note = on_pixels(case, model)
        drawn = leaves(network, case.rng)
        findings = tuple(
            ClassFinding(label=label, suspicious=lead > self.score, values={"share": share, "lead": lead})
            for label, (share, lead) in enumerate(zip(drawn.shares, drawn.leads, strict=True))
        )
        return findings, (note,)


DETECTORS.add(DeadLeaves.name, DeadLeaves)
