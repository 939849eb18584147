"""Ways into a class: triggers on the images, and channels that fire. What a repair must close.

A way is easy if the class is reached by it more cheaply than others are: a trigger of a form whose size is below `EASY`
of what the other classes need, or a channel that moves more than `PUSHES` of the answers to the class.

How far a repair has come is said in factors. A trigger whose size was a, has become b, and is u for other classes, has
regained

    log(b / a) / log(u / a)

of what the class was too easy, between 0 and 1.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unbackdoor.defender.case import Progress, silent
from unbackdoor.defender.channel_triggers import ChannelTrigger, channel_triggers
from unbackdoor.defender.on_pixels import CHUNK, OnPixels
from unbackdoor.defender.stimulation import Firing
from unbackdoor.defender.triggers import Filter, Form, Patch, PatientAdditive, PatientMask, Trigger, reconstruct
from unbackdoor.findings.layers import LayerGraph

#: Of the size that other classes need.
EASY = 0.6
#: Of the answers.
PUSHES = 0.3
#: Channels at a time: the strongest.
CHANNELS = 6
#: The forms that are searched. They are patient ones: after a repair, that none is found must mean that there is none.
SEARCHES: tuple[type[Form], ...] = (PatientMask, Patch, PatientAdditive, Filter)
#: Images a step of a search (half as many where the network is heavy), and the share of them that must be moved.
BATCH, SUCCESS = 32, 0.9
#: How strongly triggers are shown to tell what a repair has left. The smallest that leads to the class is found; the
#: attacker's own is larger.
STRONGER = 1.5
#: With so many triggers or more, channels do not tell what is left.
FEWEST = 3
#: Other classes that say what a size is worth.
OTHERS = 3

#: What other classes need: form -> the median size; infinity where no trigger of that form was found.
Usual = dict[type[Form], float]


class Way(ABC):
    """A way into a class."""

    @abstractmethod
    def logits(self, shown: OnPixels, plain: Tensor, pixels: Tensor, strength: Tensor | None = None) -> Tensor:
        """(N + M, classes): of N plain images, and of M on this way; gradients go through.

        Args:
            shown: the network, edited or not.
            plain: (N, C, H, W) in [0, 1].
            pixels: (M, C, H, W) in [0, 1].
            strength: (M,) by how much what a trigger adds is multiplied; 1 is as it was found. A channel ignores it.
        """

    @abstractmethod
    def __str__(self) -> str:
        """In a few words, for a report."""


@dataclass(frozen=True)
class Stamp(Way):
    """A trigger on the image."""

    form: Form
    size: float
    usual: float

    def logits(self, shown: OnPixels, plain: Tensor, pixels: Tensor, strength: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            pixels = pixels.to(shown.device)
            stamped = self.form(pixels)
            if strength is not None:
                added = strength.to(shown.device)[:, None, None, None] * (stamped - pixels)
                stamped = (pixels + added).clamp(0, 1)
        return shown(torch.cat([plain.to(shown.device), stamped]))

    def __str__(self) -> str:
        return _beside(f"{self.form.name} of size {self.size:.3g}", self.usual)


@dataclass(frozen=True)
class Raised(Way):
    """A channel, or several, that are raised over their whole maps."""

    firing: Firing | ChannelTrigger

    def logits(self, shown: OnPixels, plain: Tensor, pixels: Tensor, strength: Tensor | None = None) -> Tensor:
        del strength
        both = torch.cat([plain, pixels])
        with self.firing.only_from(shown.model, len(plain)):
            return shown(both)


@dataclass(frozen=True)
class Together(Raised):
    """Several channels that fire at once."""

    firing: ChannelTrigger
    usual: float

    def __str__(self) -> str:
        return _beside(str(self.firing), self.usual)


@dataclass(frozen=True)
class Channel(Raised):
    """A channel that fires."""

    firing: Firing
    moved: float = field(compare=False)

    def __str__(self) -> str:
        return f"channel {self.firing.channel} of {self.firing.layer}, which moves {self.moved:.0%} of the answers"


def _beside(found: str, usual: float) -> str:
    """What was found, and what other classes need."""
    if math.isinf(usual):
        return f"{found}; none was found that reaches other classes"
    return f"{found}; other classes need {usual:.3g}"


def usual_sizes(
    shown: OnPixels,
    pixels: Tensor,
    answers: Tensor,
    label: int,
    generator: torch.Generator,
    progress: Progress = silent,
    *,
    steps: int,
) -> Usual:
    """Measured on a few other classes, drawn at random; infinity where no trigger is found for half of them.

    Args:
        shown: the network.
        pixels: (N, C, H, W) in [0, 1].
        answers: (N,) what it answers.
        label: the class that is not asked.
        generator: of the draw and the searches.
        progress: called with (forms done, forms in all, a note).
        steps: of a search.
    """
    others = _others(shown.classes, answers, label, generator)
    sizes: Usual = {}
    for number, form in enumerate(SEARCHES):
        progress(number, len(SEARCHES), f"{form.name} of other classes")
        found = [_search(shown, pixels[answers != one], one, form, generator, steps).size for one in others]
        sizes[form] = statistics.median(found) if found else float("inf")
    return sizes


def usual_together(
    shown: OnPixels,
    graph: LayerGraph,
    pixels: Tensor,
    answers: Tensor,
    label: int,
    generator: torch.Generator,
    progress: Progress = silent,
) -> float:
    """The size of a trigger on channels that other classes need: the median of a few, drawn at random; else infinity.

    Args:
        shown: the network.
        graph: its layers.
        pixels, answers, label, generator: as in `usual_sizes`.
        progress: called with (steps done, steps in all, a note).
    """
    others = _others(shown.classes, answers, label, generator)
    found = channel_triggers(shown, graph, pixels, answers, others, generator, progress) if others else []
    return statistics.median(one.size for one in found) if found else math.inf


def search(
    shown: OnPixels,
    pixels: Tensor,
    label: int,
    generator: torch.Generator,
    progress: Progress = silent,
    *,
    steps: int,
) -> list[Trigger]:
    """Small triggers of a class, one for each of `SEARCHES`.

    Args:
        shown: the network.
        pixels: (N, C, H, W) in [0, 1], images that are not answered with the class.
        label: the class.
        generator: of the searches.
        progress: called with (searches done, searches in all, a note).
        steps: of a search.
    """
    triggers = []
    for number, form in enumerate(SEARCHES if len(pixels) else ()):
        progress(number, len(SEARCHES), f"{form.name} of class {label}")
        triggers.append(_search(shown, pixels, label, form, generator, steps))
    return triggers


def easy_triggers(triggers: Iterable[Trigger], usual: Usual) -> list[Stamp]:
    """Those that are smaller than what other classes need.

    Args:
        triggers: found by `search`.
        usual: what other classes need.
    """
    return [
        Stamp(trigger.form, trigger.size, usual[form])
        for form, trigger in zip(SEARCHES, triggers, strict=False)
        if trigger.form is not None and trigger.size < EASY * usual[form]
    ]


def easy_together(trigger: ChannelTrigger, usual: float) -> list[Together]:
    """A trigger on channels, if it is smaller than what other classes need.

    Args:
        trigger: of the class.
        usual: what other classes need.
    """
    return [Together(trigger, usual)] if trigger.size < EASY * usual else []


def regained(first: Sequence[Trigger], now: Sequence[Trigger], usual: Usual) -> float | None:
    """The mean of what the triggers have regained that were easy at first.

    None where none was, or where it is not known what other classes need: no trigger of that form reaches them.

    Args:
        first, now: found by `search`, before and after a repair.
        usual: what other classes need.
    """
    shares = []
    for form, old, new in zip(SEARCHES, first, now, strict=False):
        goal = usual[form]
        if old.form is not None and math.isfinite(goal) and 0 < old.size < EASY * goal:
            grown = math.log(max(new.size, old.size) / old.size) if new.form is not None else math.inf
            shares.append(min(1.0, grown / math.log(goal / old.size)))
    return statistics.fmean(shares) if shares else None


def easy_channels(firings: Iterable[tuple[Firing, float]], most: int = CHANNELS) -> list[Channel]:
    """Those that push hardest to a class.

    Args:
        firings: channels, and the share of the answers that each moves to the class.
        most: how many at most.
    """
    strong = [Channel(firing, moved) for firing, moved in firings if moved > PUSHES]
    return sorted(strong, key=lambda way: -way.moved)[:most]


def telling(ways: Sequence[Way]) -> Sequence[Way]:
    """Those that tell what is left.

    Where there are `FEWEST` triggers or more, channels are not asked: there may be many, and they would outvote the
    triggers. One or two triggers may be no part of a backdoor; channels do outvote them.
    """
    triggers = [way for way in ways if isinstance(way, Stamp)]
    return triggers if len(triggers) >= FEWEST else ways


@torch.no_grad()
def success(shown: OnPixels, ways: Sequence[Way], pixels: Tensor, label: int, *, strength: float = STRONGER) -> float:
    """The share of images that some ways still move to a class, by the median of those that tell; 0 without any.

    Args:
        shown: the network, edited or not.
        ways: the ways.
        pixels: (N, C, H, W) in [0, 1], images that were not answered with the class.
        label: the class.
        strength: of the triggers; 1 is as they were found.
    """
    if not ways or not len(pixels):
        return 0.0
    parts, rates = torch.split(pixels, CHUNK), []
    for way in telling(ways):
        answers = [way.logits(shown, part[:0], part, torch.full((len(part),), strength)).argmax(1) for part in parts]
        rates.append(float((torch.cat(answers) == label).double().mean()))
    return statistics.median(rates)


def _others(classes: int, answers: Tensor, label: int, generator: torch.Generator) -> list[int]:
    """A few classes, drawn at random, to each of which some image must be led."""
    order = torch.randperm(classes, generator=generator).tolist()
    return [one for one in order if one != label and bool((answers != one).any())][:OTHERS]


def _search(
    shown: OnPixels, pixels: Tensor, label: int, form: type[Form], generator: torch.Generator, steps: int
) -> Trigger:
    batch = shown.fewer(BATCH)
    return reconstruct(shown, pixels, label, form, steps=steps, batch=batch, success=SUCCESS, generator=generator)
