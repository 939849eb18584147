"""Channels: which class do too few channels reach together? It needs no data.

Channels of the last layers are raised together, on class impressions, as little as leads them to a class
(`defender.channel_triggers`). For an honest class it takes several channels far out; a backdoor leaves a few that
suffice, whatever its trigger looks like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from unbackdoor.defender.case import Case
from unbackdoor.defender.channel_triggers import channel_triggers, leads
from unbackdoor.defender.on_pixels import on_pixels
from unbackdoor.defender.surrogates import class_images
from unbackdoor.detectors.base import DETECTORS, Found
from unbackdoor.detectors.data_free.base import DataFreeDetector
from unbackdoor.errors import MethodError
from unbackdoor.findings import ClassFinding, finite
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class Channels(DataFreeDetector):
    """Find the class that few channels reach together."""

    name: ClassVar[str] = "channels"
    title: ClassVar[str] = "Channel triggers"
    paper: ClassVar[None] = None

    surrogates: int = setting(200, "generated images, of all classes", least=2, own=True)
    score: float = setting(
        0.5, "a class is suspicious above this lead, in factors of two, over the next", least=0, most=1e6, own=True
    )

    def inspect(self, case: Case, model: nn.Module) -> Found:
        """The smallest trigger on channels for each class, then the class that is ahead."""
        network, note = on_pixels(case, model)
        made = class_images(network, self.surrogates, case.rng)
        if not bool((made.answers != made.answers[0]).any()):
            raise MethodError(f"channels: the network answers class {int(made.answers[0])} to every generated image")
        labels = range(network.classes)
        found = channel_triggers(network, case.layers(), made.images, made.answers, labels, case.rng, case.progress)
        if not found:
            raise MethodError(
                "channels: expected hidden layers that are modules and run once in a forward pass, found none"
            )
        ahead = leads([trigger.size for trigger in found])
        findings = tuple(
            ClassFinding(
                label=trigger.label,
                suspicious=lead > self.score,
                values={"size": finite(trigger.size), "lead": lead},
            )
            for trigger, lead in zip(found, ahead, strict=True)
        )
        return findings, (note,)


DETECTORS.add(Channels.name, Channels)
