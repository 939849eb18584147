"""Stimulation: which class do single channels push answers to? It needs no data.

Each hidden channel in turn is made to fire over its whole map, on class impressions (`defender.stimulation`). A
backdoor leaves channels that move every answer to its class. Early layers hold colours and edges, which speak for
honest classes too, so the first third of the layers does not count. A patch may work through several channels at once,
which this does not show.

    push(t)     sum over the channels of flip(channel, t)^2
    score(t)    log(push(t) + FLOOR), in robust deviations above the median of the classes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.defender.case import Case
from unbackdoor.defender.on_pixels import on_pixels
from unbackdoor.defender.stimulation import Pushes, stimulate
from unbackdoor.defender.surrogates import class_images
from unbackdoor.detectors.base import DETECTORS, Found
from unbackdoor.detectors.data_free.base import LEAST, DataFreeDetector
from unbackdoor.detectors.outliers import deviations
from unbackdoor.errors import MethodError
from unbackdoor.findings import ClassFinding, finite
from unbackdoor.settings import setting

#: What a class is pushed by chance: a channel that moves every fifth answer.
FLOOR = 0.04


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
        scores = deviations([math.log(float(value) + FLOOR) for value in total], least=LEAST, middle="lower")
        findings = tuple(
            ClassFinding(
                label=label,
                suspicious=scores[label] > self.score,
                values={"push": float(total[label]), "score": finite(scores[label])},
            )
            for label in range(len(total))
        )
        return findings, (note,)


def push(pushes: Sequence[Pushes]) -> Tensor:
    """(classes,) the sum of squared flips of all channels behind the first third of the layers."""
    counted = pushes[len(pushes) // 3 :]
    return torch.stack([layer.flips.square().sum(0) for layer in counted]).sum(0)


DETECTORS.add(Stimulation.name, Stimulation)
