"""Stimulation: which class do single channels push answers to? It needs no data.

Each hidden channel in turn is made to fire over its whole map, on class impressions (`defender.stimulation`). A
backdoor leaves channels that move every answer to its class. Early layers hold colours and edges, which speak for
honest classes too, so the first third of the layers does not count. A patch may work through several channels at once,
which this does not show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from unbackdoor.defender.case import Case
from unbackdoor.defender.on_pixels import on_pixels
from unbackdoor.defender.stimulation import push, push_scores, stimulate
from unbackdoor.defender.surrogates import class_images
from unbackdoor.detectors.base import DETECTORS, Found
from unbackdoor.detectors.data_free.base import DataFreeDetector
from unbackdoor.errors import MethodError
from unbackdoor.findings import ClassFinding, finite
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class Stimulation(DataFreeDetector):
    """Find the class that channels push answers to."""

    name: ClassVar[str] = "stimulation"
    title: ClassVar[str] = "Channel stimulation"
    paper: ClassVar[None] = None

    surrogates: int = setting(200, "generated images, of all classes", least=2, own=True)
    shown: int = setting(20, "of them, on which each channel fires", least=2, own=True)
    score: float = setting(3.0, "a class is suspicious above this score", least=0, most=1e6, own=True)

    def inspect(self, case: Case, model: nn.Module) -> Found:
        """What the channels push each class by, then the class that stands out."""
        network, note = on_pixels(case, model)
        made = class_images(network, self.surrogates, case.rng)
        drawn = made.images[torch.randperm(len(made.images), generator=case.rng)[: self.shown]]
        pushes = stimulate(
            network, case.layers(), drawn, progress=lambda done, total: case.progress(done, total, "channels")
        )
        if not pushes:
            raise MethodError(
                "stimulation: expected hidden layers that are modules and run once in a forward pass, found none"
            )
        total = push(pushes)
        scores = push_scores(pushes)
        findings = tuple(
            ClassFinding(
                label=label,
                suspicious=scores[label] > self.score,
                values={"push": float(total[label]), "score": finite(scores[label])},
            )
            for label in range(len(total))
        )
        return findings, (note,)


DETECTORS.add(Stimulation.name, Stimulation)
