"""MM-BD (Wang et al., IEEE S&P 2024), the maximum margin statistic; it needs no images.

Symbols, per class c:
    r_c   the largest f_c(x) - max over others of f_k(x) that gradient ascent finds over images x, from `starts` of
          uniform noise
    H     a gamma law fitted to all r_c but the largest
    p     1 - H(r_max)^C: how often the largest of C numbers drawn from H is that large

The class of r_max is suspicious if p < alpha: a backdoor lifts its target's logit over all others further than honest
images do.

Departures: Classes whose margin stays at or below 0 are left out: a gamma law has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.defender.case import Case
from unbackdoor.defender.on_pixels import OnPixels, gradients, on_pixels
from unbackdoor.detectors.base import DETECTORS, Found
from unbackdoor.detectors.data_free.base import DataFreeDetector
from unbackdoor.errors import MethodError
from unbackdoor.findings import ClassFinding
from unbackdoor.papers import Paper
from unbackdoor.settings import setting

#: The largest shape of a gamma law: its numbers then vary by a millionth, and count as equal.
STEEPEST = 1e12


@dataclass(frozen=True, kw_only=True)
class MaximumMargin(DataFreeDetector):
    """Find the class whose largest margin over all others is too large."""

    name: ClassVar[str] = "margin"
    title: ClassVar[str] = "MM-BD, maximum margin"
    paper: ClassVar[Paper] = Paper(
        authors=("Wang", "Xiang", "Miller", "Kesidis"),
        title=(
            "MM-BD: Post-Training Detection of Backdoor Attacks with Arbitrary Backdoor Pattern Types Using a Maximum "
            "Margin Statistic"
        ),
        venue="IEEE S&P",
        year=2024,
        url="https://arxiv.org/abs/2205.06900",
    )

    starts: int = setting(30, "images of noise per class, each of which is driven to the class", least=1)
    steps: int = setting(300, "steps of gradient ascent per class", least=1)
    lr: float = setting(0.01, "learning rate, for pixels in [0, 1]", least=1e-9, most=1e6)
    alpha: float = setting(
        0.05, "the class with the largest margin is suspicious if p lies below this", least=0, most=1
    )

    def inspect(self, case: Case, model: nn.Module) -> Found:
        """A margin a class, then the chance of the largest."""
        network, note = on_pixels(case, model, exact=True)
        classes = network.classes
        if classes < 4:
            raise MethodError(f"margin: expected 4 or more classes, got {classes}: a law cannot be fitted to fewer")
        margins = [self._margin(case, network, label, classes) for label in range(classes)]
        compared = [margin for margin in margins if margin > 0]
        if len(compared) < 4:
            raise MethodError(
                f"margin: expected 4 or more classes that some image is answered with, found {len(compared)} of "
                f"{classes}; use more steps"
            )
        chance = chance_of_largest(compared)
        suspect = max(range(classes), key=margins.__getitem__)
        found = tuple(
            ClassFinding(
                label=label,
                suspicious=label == suspect and chance < self.alpha,
                values={"margin": margin, "p": chance if label == suspect else None},
            )
            for label, margin in enumerate(margins)
        )
        notes = [f"class {k} is not compared: no image is answered with it" for k, m in enumerate(margins) if m <= 0]
        if len(compared) < 6:
            notes.append(f"only {len(compared)} classes were compared, so p means little")
        return found, (*notes, note)

    def _margin(self, case: Case, network: OnPixels, label: int, classes: int) -> float:
        """r_c: projected gradient ascent from all starts at once; each image has its own margin."""
        pixels = torch.rand(self.starts, *network.spec.shape, generator=case.rng).to(network.device)
        for step in range(self.steps):
            pixels.requires_grad_()
            (slope,) = gradients(_margins(network(pixels), label).sum(), [pixels])
            pixels = (pixels.detach() + self.lr * slope).clamp(0, 1)
            case.progress(label * self.steps + step + 1, classes * self.steps, f"class {label}")
        with torch.no_grad():
            return float(_margins(network(pixels), label).max())


def _margins(logits: Tensor, label: int) -> Tensor:
    """f_c less the best other, (N,)."""
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], 1)
    return logits[:, label] - others.amax(1)


def chance_of_largest(values: list[float]) -> float:
    """1 - H(max)^C, for a gamma law H fitted to all of C positive numbers but the largest."""
    *rest, largest = sorted(values)
    shape, scale = gamma_fit(rest)
    tail = float(torch.special.gammaincc(*(torch.tensor(x, dtype=torch.float64) for x in (shape, largest / scale))))
    return -math.expm1(len(values) * math.log1p(-tail)) if tail < 1 else 1.0


def gamma_fit(values: list[float]) -> tuple[float, float]:
    """Shape and scale of the gamma law (from 0 on) that makes positive numbers most likely.

    The shape k solves log k - digamma(k) = log mean - mean log; Newton's method in 1 / k converges from Minka's start.
    """
    x = torch.tensor(values, dtype=torch.float64)
    mean = float(x.mean())
    gap = math.log(mean) - float(x.log().mean())
    if gap <= 1 / (2 * STEEPEST):  # k is about 1 / (2 gap)
        return STEEPEST, mean / STEEPEST
    k = torch.tensor((3 - gap + math.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap), dtype=torch.float64)
    for _ in range(20):
        off = k.log() - torch.special.digamma(k) - gap
        k = 1 / (1 / k + off / (k**2 * (1 / k - torch.special.polygamma(1, k))))
    return float(k), mean / float(k)


DETECTORS.add(MaximumMargin.name, MaximumMargin)
