"""Neural Cleanse (Wang et al., IEEE S&P 2019), its detection.

Symbols, per class t:
    m, p     mask in [0, 1] (one for all channels) and pattern of pixels in [0, 1]
    A(x)     (1 - m) x + m p                                                                         (Eq. 2)
    L        CE(f(A(x)), t) + lambda |m|_1, over clean images                                        (Eq. 3)
    lambda   rises while at least `success` of the images answer t, falls while they do not
    index    |  |m|_1 - median  | / (1.4826 median absolute deviation)                               (Sec. IV-C)

A class whose smallest trigger lies below the median by an index above `index` is suspicious. The threshold supposes
many classes and small triggers: image-wide triggers (Blended, SIG, WaNet, BPP) need no small mask.

Without a data set's spec, images are taken to be pixels in [0, 1].

Departures:
    - m and p are sigmoids of free parameters. The published code uses tanh.
    - The smallest mask is kept among those that reached the success limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.defender.case import Case, Needs
from unbackdoor.defender.deviations import deviations
from unbackdoor.defender.images import DefenderData, classes_of
from unbackdoor.detectors.base import DETECTORS, Found
from unbackdoor.detectors.data_based.base import DataBasedDetector
from unbackdoor.errors import MethodError
from unbackdoor.findings import ClassFinding, finite
from unbackdoor.papers import Paper
from unbackdoor.settings import setting

#: Factor on lambda, and how many steps in a row ask for it.
FACTOR, PATIENCE = 1.5, 5


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(DataBasedDetector):
    """Reconstruct the smallest trigger for each class, and find the class whose trigger is too small."""

    name: ClassVar[str] = "nc"
    title: ClassVar[str] = "Neural Cleanse"
    paper: ClassVar[Paper] = Paper(
        authors=("Wang", "Yao", "Shan", "Li", "Viswanath", "Zheng", "Zhao"),
        title="Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks",
        venue="IEEE S&P",
        year=2019,
        url="https://doi.org/10.1109/SP.2019.00031",
    )
    needs: ClassVar[Needs] = "clean images"

    steps: int = setting(500, "steps of Adam per class", least=1)
    lr: float = setting(0.1, "learning rate of Adam", least=1e-9, most=1e3)
    batch_size: int = setting(32, "clean images per step, drawn with replacement", least=1)
    success: float = setting(0.99, "share of images on which a trigger must succeed", least=0, most=1)
    weight: float = setting(1e-3, "lambda at the start", least=0, most=1e6)
    index: float = setting(2.0, "a class is suspicious above this anomaly index", least=0, most=1e6)

    def inspect(self, case: Case, model: nn.Module, data: DefenderData) -> Found:
        """A trigger a class, then the outliers among their sizes."""
        if data.images.ndim != 4:
            raise MethodError(f"nc needs images (N, C, H, W), got {tuple(data.images.shape)}")
        model.requires_grad_(False)
        classes = classes_of(model, data)
        triggers = [self._trigger(case, model, data, label, classes) for label in range(classes)]
        reached = [label for label, (mask, _) in enumerate(triggers) if mask is not None]
        sizes = [float(mask.sum()) for mask, _ in triggers if mask is not None]
        if len(reached) < 3:
            raise MethodError(
                f"nc: expected triggers that work on {self.success:.0%} of the images for 3 or more classes, found one "
                f"for {len(reached)} of {classes} classes; use more steps"
            )
        indices = dict(zip(reached, anomaly(sizes), strict=True))
        size_of = dict(zip(reached, sizes, strict=True))
        median = float(torch.tensor(sizes, dtype=torch.float64).quantile(0.5))
        found = tuple(
            ClassFinding(
                label=label,
                suspicious=label in size_of and size_of[label] < median and indices[label] > self.index,
                values={
                    "mask": finite(size_of[label]) if label in size_of else None,
                    "anomaly": finite(indices[label]) if label in indices else None,
                    "success": rate,
                },
            )
            for label, (_, rate) in enumerate(triggers)
        )
        notes = [
            f"class {label} is not compared: no trigger changed enough answers"
            for label in range(classes)
            if label not in size_of
        ]
        if len(reached) < 5:
            notes.append(f"only {len(reached)} classes were compared, so an outlier means little")
        return found, tuple(notes)

    def _trigger(
        self, case: Case, model: nn.Module, data: DefenderData, label: int, classes: int
    ) -> tuple[Tensor | None, float]:
        """The smallest mask, (1, 1, H, W), that turned enough images, or None; and the share that was turned."""
        shape, device = data.images.shape, data.labels.device
        free = torch.randn(1, 1, *shape[2:], generator=case.rng).to(device).requires_grad_()
        paint = torch.randn(1, shape[1], *shape[2:], generator=case.rng).to(device).requires_grad_()
        optimiser = torch.optim.Adam([free, paint], lr=self.lr, betas=(0.5, 0.9))
        low, scale = data.floor, data.scale
        weight, up, down = self.weight, 0, 0
        best, best_rate = None, 0.0
        rate = 0.0
        for step in range(self.steps):
            x, _ = data.draw(self.batch_size, case.rng)
            mask, pattern = free.sigmoid(), paint.sigmoid()
            logits = model((1 - mask) * x + mask * (low + scale * pattern))
            goal = torch.full((len(x),), label, device=device)
            loss = F.cross_entropy(logits, goal) + weight * mask.abs().sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            turned = float((logits.detach().argmax(1) == label).double().mean())
            rate = turned if step == 0 else 0.9 * rate + 0.1 * turned
            if rate >= self.success and (best is None or float(mask.detach().sum()) < float(best.sum())):
                best, best_rate = mask.detach().clone(), rate
            up, down = (up + 1, 0) if turned >= self.success else (0, down + 1)
            if up >= PATIENCE:
                weight, up = weight * FACTOR, 0
            elif down >= PATIENCE:
                weight, down = weight / FACTOR, 0
            optimiser.step()
            case.progress(label * self.steps + step + 1, classes * self.steps, f"class {label}: success {rate:.0%}")
        return (None, rate) if best is None else (best, best_rate)


def anomaly(sizes: list[float]) -> list[float]:
    """The distance of each number from the median, in median absolute deviations (consistent for a normal)."""
    return [abs(z) for z in deviations(sizes)]


DETECTORS.add(NeuralCleanse.name, NeuralCleanse)
