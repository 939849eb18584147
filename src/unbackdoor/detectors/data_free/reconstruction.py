"""Reconstruction: the smallest trigger of each class, on images made from the network. It needs no data.

For each class, two forms of trigger are optimised until they are as small as they can be while they still send most
class impressions there (`defender.triggers`): a mask with a pattern, and a pattern that is added. A backdoor's class
needs a much smaller one than the others. A patch shows in the mask; a blended image, or colours of fewer bits, in both;
a warp, a sinusoid and a trigger that differs by image need not show in either.

    size(t, f)     the smallest trigger of form f for class t
    score(t)       the largest, over forms, of (median of log size(., f) - log size(t, f)) / robust deviation

A first, coarse round of few steps chooses the classes that are worth the full number.

Departures from Neural Cleanse (Wang et al., IEEE S&P 2019), whose mask this is: images are made, not given; there is a
second form; few steps with a weight that adapts fast; a class counts only if its trigger is *smaller* than the median.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from unbackdoor.defender.case import Case
from unbackdoor.defender.on_pixels import OnPixels, on_pixels
from unbackdoor.defender.surrogates import Impressions, class_images
from unbackdoor.defender.triggers import FORMS, Form, Smallest, smallest
from unbackdoor.detectors.base import DETECTORS, Found
from unbackdoor.detectors.data_free.base import DataFreeDetector
from unbackdoor.errors import MethodError
from unbackdoor.findings import ClassFinding, finite
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class Reconstruction(DataFreeDetector):
    """Find the class that the smallest trigger reaches."""

    name: ClassVar[str] = "reconstruction"
    title: ClassVar[str] = "Trigger reconstruction"
    paper: ClassVar[None] = None

    surrogates: int = setting(200, "generated images, of all classes", least=2, own=True)
    steps: int = setting(60, "steps of Adam per class and form", least=1, own=True)
    batch_size: int = setting(32, "generated images per step, drawn with replacement", least=1, own=True)
    success: float = setting(0.9, "share of a batch on which a trigger must succeed", least=0, most=1, own=True)
    score: float = setting(5.0, "a class is suspicious above this score", least=0, most=1e6, own=True)

    def inspect(self, case: Case, model: nn.Module) -> Found:
        """The triggers of each class, then those that are too small."""
        shown, note = on_pixels(case, model)
        made = class_images(shown, self.surrogates, case.rng)
        triggers = self.triggers(case, shown, made)
        scores = {form: triggers[form].scores for form in FORMS}
        if not any(trigger.form for one in triggers.values() for trigger in one.triggers):
            raise MethodError(
                f"reconstruction: no trigger moved {self.success:.0%} of the generated images to any class; use more "
                "steps"
            )
        findings = []
        for label in range(shown.classes):
            best = max(scores[form][label] for form in FORMS)
            sizes = {form.name: finite(triggers[form].triggers[label].size) for form in FORMS}
            values = {**sizes, "score": finite(best)}
            findings.append(ClassFinding(label=label, suspicious=best > self.score, values=values))
        return tuple(findings), (note,)

    def triggers(self, case: Case, shown: OnPixels, made: Impressions) -> dict[type[Form], Smallest]:
        """The smallest trigger of each form and class.

        Args:
            case: its generator and its progress bar.
            shown: the network.
            made: its impressions.
        """

        def search(number: int, form: type[Form]) -> Smallest:
            return smallest(
                shown,
                made,
                form,
                steps=self.steps,
                batch=self.batch_size,
                success=self.success,
                generator=case.rng,
                progress=lambda done, total, note: case.progress(number * total + done, len(FORMS) * total, note),
            )

        return {form: search(number, form) for number, form in enumerate(FORMS)}


DETECTORS.add(Reconstruction.name, Reconstruction)
