"""One look at a network by every witness that needs no data, on one set of class impressions.

    head             a class that one change of the classifier's input reaches too easily, or too hard
    stimulation      a class that single channels push answers to
    channels         a class that too few channels reach together
    reconstruction   a class that too small a trigger reaches

Each gives every class a score: how far it stands out among the classes, in robust deviations; for stimulation and
channels, how many factors of two it is ahead of the next. Clean networks say how large such scores are
by chance (`defender.clean_networks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor.defender.case import Progress, part, silent
from unbackdoor.defender.channel_triggers import channel_triggers, leads
from unbackdoor.defender.clean_networks import CleanNetworks, Verdict, judge
from unbackdoor.defender.head import ways
from unbackdoor.defender.on_pixels import OnPixels, folded
from unbackdoor.defender.stimulation import Pushes, push, push_leads, stimulate
from unbackdoor.defender.surrogates import Impressions, class_images
from unbackdoor.defender.triggers import FORMS, Form, Smallest, Trigger, smallest
from unbackdoor.errors import MethodError
from unbackdoor.findings import finite
from unbackdoor.findings.layers import LayerGraph

#: Passes that stimulation may take before it is shown fewer images, and the fewest.
STIMULATIONS, FEWEST = 100_000, 8

WITNESSES = ("head", "stimulation", "channels", "reconstruction")

#: One a class; None where a witness says nothing of one.
_Scores = tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the witnesses saw.

    Attributes:
        made: the class impressions.
        drawn: (N, C, H, W) those of them on which channels were stimulated.
        scores: by witness, one a class, above 0 where a class stands out.
        values: what the scores come from, by name, one a class.
        missing: witness -> why it could not look.
        pushes: what each channel does to the answers, layer by layer; empty where it is not known.
        triggers: the smallest trigger of each form, by class.
        verdict: what the scores mean together.
    """

    made: Impressions
    drawn: Tensor
    scores: Mapping[str, _Scores]
    values: Mapping[str, _Scores]
    missing: Mapping[str, str]
    pushes: tuple[Pushes, ...]
    triggers: Mapping[type[Form], Smallest]
    verdict: Verdict

    def trigger(self, label: int) -> Trigger | None:
        """A class's trigger of the form in which it stands out most; None where none succeeded."""
        best = max(self.triggers, key=lambda form: self.triggers[form].scores[label], default=None)
        found = None if best is None else self.triggers[best].triggers[label]
        return found if found is not None and found.form is not None else None


def look(
    shown: OnPixels,
    graph: LayerGraph,
    generator: torch.Generator,
    progress: Progress = silent,
    *,
    count: int = 200,
    stimulated: int = 20,
    steps: int = 60,
    batch: int = 32,
    success: float = 0.9,
    known: CleanNetworks | None = None,
) -> Look:
    """Ask every witness.

    Args:
        shown: the network; its weights take no gradients.
        graph: its layers.
        generator: of everything that is drawn.
        progress: called with (done, total, a note).
        count: of class impressions; half as many where the network is heavy (`on_pixels.HEAVY`).
        stimulated: of them, on which each channel fires; fewer where there are more than 5,000 channels.
        steps: of a trigger's reconstruction, `batch` images each (half as many where the network is heavy), of which a
            share `success` must be moved.
        known: clean networks to compare with; those of the package by default.

    Raises:
        MethodError: the network does not answer such images.
    """
    parts = _Parts(progress)
    batch = shown.fewer(batch)
    made = class_images(shown, max(2, shown.fewer(count)), generator, progress=parts(0.3))
    channels = sum(layer.out_channels for layer in graph.layers if layer.part == "hidden")
    stimulated = max(min(FEWEST, stimulated), min(stimulated, STIMULATIONS // max(1, channels)))
    drawn = made.images[torch.randperm(len(made.images), generator=generator)[:stimulated]]
    scores: dict[str, _Scores] = {}
    values: dict[str, _Scores] = {}
    missing: dict[str, str] = {}
    pushes: list[Pushes] = []
    triggers: dict[type[Form], Smallest] = {}
    try:
        found = ways(shown, graph, generator, progress=parts(0.05))
        scores["head"] = tuple(None if finite(score) is None else abs(score or 0.0) for score in found.scores)
        values["head"] = found.norms
    except MethodError as error:
        missing["head"] = str(error)
    if not bool((made.answers != made.answers[0]).any()):
        missing["stimulation"] = missing["channels"] = missing["reconstruction"] = (
            f"the network answers class {int(made.answers[0])} to every generated image"
        )
    else:
        told = parts(0.15)
        pushes = stimulate(shown, graph, drawn, progress=lambda done, total: told(done, total, "channels"))
        if pushes:
            scores["stimulation"] = tuple(push_leads(pushes))
            values["stimulation"] = tuple(push(pushes).tolist())
            labels = range(shown.classes)
            raised = channel_triggers(shown, graph, made.images, made.answers, labels, generator, parts(0.1))
            scores["channels"] = leads([trigger.size for trigger in raised])
            values["channels"] = tuple(finite(trigger.size) for trigger in raised)
        else:
            missing["stimulation"] = missing["channels"] = (
                "no hidden layer is a module that runs once in a forward pass"
            )
        quick = folded(shown, graph)
        for form in FORMS:
            triggers[form] = smallest(
                quick,
                made,
                form,
                steps=steps,
                batch=batch,
                success=success,
                generator=generator,
                progress=parts(0.4 / len(FORMS)),
            )
            sizes = triggers[form].sizes
            values[form.name] = tuple(finite(size) for size in sizes)
        if any(trigger.form for one in triggers.values() for trigger in one.triggers):
            pairs = zip(*(one.scores for one in triggers.values()), strict=True)
            scores["reconstruction"] = tuple(max(pair) for pair in pairs)
        else:
            missing["reconstruction"] = f"no trigger moved {success:.0%} of the generated images to any class"
    return Look(
        made=made,
        drawn=drawn,
        scores=scores,
        values=values,
        missing=missing,
        pushes=tuple(pushes),
        triggers=triggers,
        verdict=judge(scores, running_statistics=has_running_statistics(shown.model), known=known),
    )


def has_running_statistics(model: nn.Module) -> bool:
    """Whether a norm of the network remembers its training images."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
        for module in model.modules()
    )


class _Parts:
    """One progress bar for several parts of the work."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._start = 0.0

    def __call__(self, share: float) -> Progress:
        """Of the next part, which is such a share of the whole."""
        start = self._start
        self._start += share
        return part(self._progress, start, self._start)
