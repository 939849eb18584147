"""The head quadratic programme, a scan of the classifier alone; no paper of its own. It asks how far the classifier's
input must move, by one change for all images, until each is answered with class k. It needs no images: the inputs come
from dead leaves and from noise with natural spectra.

`defender.head` finds s_k, the smallest such change. With z_k = (log |s_k| - median) / (1.4826 median absolute
deviation), a class is suspicious if z_k lies beyond `deviations` on either side: a backdoor is a short way into its
class, but the target of a clean-label attack may be the class that is hardest to reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from unbackdoor.defender.case import Case
from unbackdoor.defender.head import classifier, ways
from unbackdoor.defender.on_pixels import on_pixels
from unbackdoor.detectors.base import DETECTORS, Found
from unbackdoor.detectors.data_free.base import DataFreeDetector
from unbackdoor.findings import ClassFinding, finite
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class HeadProgramme(DataFreeDetector):
    """Find the class that one change of the classifier's input reaches too easily, or too hard."""

    name: ClassVar[str] = "head"
    title: ClassVar[str] = "Head quadratic programme"
    paper: ClassVar[None] = None

    surrogates: int = setting(600, "generated images: half dead leaves, half random spectra", least=2, own=True)
    deviations: float = setting(
        4.0, "a class is suspicious this many robust deviations from the median", least=0, most=1e6, own=True
    )

    def inspect(self, case: Case, model: nn.Module) -> Found:
        """One programme a class, then the outliers on both sides."""
        graph = case.layers()
        _ = classifier(graph, model)  # its errors come before those of the images
        shown, note = on_pixels(case, model, exact=True)
        found = ways(shown, graph, case.rng, count=self.surrogates, progress=case.progress)
        classes = tuple(
            ClassFinding(
                label=label,
                suspicious=abs(found.scores[label] or 0.0) > self.deviations,
                values={"norm": norm, "deviations": finite(found.scores[label]), "surrogates": found.shares[label]},
            )
            for label, norm in enumerate(found.norms)
        )
        return classes, (*_notes(classes), note)


def _notes(found: tuple[ClassFinding, ...]) -> list[str]:
    """What the norms do not say."""
    share = {one.label: one.values["surrogates"] or 0.0 for one in found}
    left_out = [one.label for one in found if one.values["norm"] is None]
    missing = ", ".join(str(label) for label in left_out if share[label] < 1)
    notes = [f"not compared, since no one change sends all images there: class {missing}"] if missing else []
    for label, part in share.items():
        if part > 0.5:
            less = "is not compared: no image was left" if label in left_out else "was easy to reach: few were left"
            notes.append(f"class {label}, the answer to {part:.0%} of the generated images, {less}")
    if len(found) - len(left_out) < 5:
        notes.append(f"only {len(found) - len(left_out)} classes were compared, so an outlier means little")
    return notes


DETECTORS.add(HeadProgramme.name, HeadProgramme)
