"""Reconstruction: the smallest trigger of each class, on images made from the network. It needs no data.

For each class, two forms of trigger are optimised until they are as small as they can be while they still send most
class impressions there (`defender.triggers`): a mask with a pattern, and a pattern that is added. A backdoor's class
needs a much smaller one than the others. A patch shows in the mask; a blended image, or colours of fewer bits, in both;
a warp, a sinusoid and a trigger that differs by image need not show in either.

    size(t, f)     the smallest trigger of form f for class t
    score(t)       the largest, over forms, of (median of log size(., f) - log size(t, f)) / robust deviation

With many classes a first, coarse round of few steps chooses those that are worth the full number.

Departures from Neural Cleanse (Wang et al., IEEE S&P 2019), whose mask this is: images are made, not given; there is a
second form; few steps with a weight that adapts fast; a class counts only if its trigger is *smaller* than the median.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from unbackdoor.defender.case import Case
from unbackdoor.defender.on_pixels import OnPixels, on_pixels
from unbackdoor.defender.surrogates import Impressions, class_images
from unbackdoor.defender.triggers import FORMS, Form, Trigger, reconstruct
from unbackdoor.detectors.base import DETECTORS, Found
from unbackdoor.detectors.data_free.base import LEAST, DataFreeDetector
from unbackdoor.detectors.outliers import deviations
from unbackdoor.errors import MethodError
from unbackdoor.findings import ClassFinding, finite
from unbackdoor.settings import setting

#: Up to so many classes get all steps at once; of more, a coarse round chooses that many.
MANY = 20
#: The share of the steps that the coarse round has.
COARSE = 0.4


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
        scores = {form: _scores([triggers[form, label] for label in range(shown.classes)]) for form in FORMS}
        if not any(trigger.form for trigger in triggers.values()):
            raise MethodError(
                f"reconstruction: no trigger moved {self.success:.0%} of the generated images to any class; use more "
                "steps"
            )
        findings = []
        for label in range(shown.classes):
            best = max(scores[form][label] for form in FORMS)
            sizes = {form.name: finite(triggers[form, label].size) for form in FORMS}
            values = {**sizes, "score": finite(best)}
            findings.append(ClassFinding(label=label, suspicious=best > self.score, values=values))
        return tuple(findings), (note,)

    def triggers(self, case: Case, shown: OnPixels, made: Impressions) -> dict[tuple[type[Form], int], Trigger]:
        """The smallest trigger of each form and class.

        Args:
            case: its generator and its progress bar.
            shown: the network.
            made: its impressions.
        """
        everything = list(range(shown.classes))
        coarse = len(everything) > MANY
        first = max(1, round(COARSE * self.steps)) if coarse else self.steps
        total = len(FORMS) * (len(everything) * first + (MANY * self.steps if coarse else 0))
        result: dict[tuple[type[Form], int], Trigger] = {}
        done = 0

        def search(form: type[Form], labels: Iterable[int], steps: int) -> None:
            nonlocal done
            for label in labels:
                found = result[form, label] = self._smallest(case, shown, made, form, label, steps)
                done += steps
                case.progress(done, total, f"{form.name} of class {label}: {found.size:.3g}")

        for form in FORMS:
            search(form, everything, first)
            if coarse:
                smallest = sorted(everything, key=lambda label: _order(result[form, label]))
                search(form, smallest[:MANY], self.steps)
        return result

    def _smallest(
        self, case: Case, shown: OnPixels, made: Impressions, form: type[Form], label: int, steps: int
    ) -> Trigger:
        """The smallest trigger of one form for one class, on the images that are not answered with it."""
        others = made.images[made.answers != label]
        if not len(others):
            return Trigger(label, None, math.inf, 0.0)
        return reconstruct(
            shown,
            others,
            label,
            form,
            steps=steps,
            batch=self.batch_size,
            success=self.success,
            generator=case.rng,
        )


def _order(trigger: Trigger) -> tuple[float, float]:
    """Small triggers first; of those that did not succeed, the one that came closest."""
    return trigger.size, -trigger.success


def _scores(triggers: list[Trigger]) -> list[float]:
    """By how many robust deviations each log size lies below the median."""
    reached = [math.log(max(trigger.size, 1e-9)) for trigger in triggers]
    return [-z if math.isfinite(z) else 0.0 for z in deviations(reached, least=LEAST, middle="lower")]


DETECTORS.add(Reconstruction.name, Reconstruction)
