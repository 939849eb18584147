"""Label-consistent (Turner et al., arXiv 2019), the variant with adversarial perturbations.

Symbols:
    f     a clean classifier of the same data
    x_t   the perturbed image: x_0 = x, x_{t+1} = clip(x_t + a sign(grad CE(f(x_t), y)), x - eps, x + eps), in 0..255
    t     a 3x3 pattern of black and white pixels in each of the four corners

Poisoned are images of the target class alone, and no label changes: each is first perturbed until f no longer knows it,
so that a network in training finds the corners easier to learn than the class; then it gets t. At test time t alone is
set. The corners' pattern is a checkerboard, its own mirror image, and four of them outlive crops and flips. The rate is
counted over all images and cannot exceed the target class's share; a larger rate is capped, with a note.

Departures:
    - PGD begins at the image itself, not at a random point beside it. So the same image always gets the same
      perturbation.
    - Perturbed images are rounded to 8 bits (or truncated, with `rounding`).
    - The pattern has amplitude 1 in training too. The paper's fainter patterns are left out, and so is its variant with
      a generative network.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn

from unbackdoor.attacks.base import ATTACKS, Progress
from unbackdoor.attacks.poisoning import DataPoisoning
from unbackdoor.data import DatasetSpec, normalise
from unbackdoor.errors import SettingError
from unbackdoor.papers import Paper
from unbackdoor.settings import INTERNAL, setting

if TYPE_CHECKING:
    from unbackdoor.data import LabelledImages

_BATCH = 128
_SIDE = 3


@dataclass(frozen=True)
class Surrogate:
    """The clean classifier f, used while images are poisoned; it is never saved.

    Attributes:
        network: a copy of the given network, in eval mode.
        spec: what it was trained on.
        progress: called with (steps done, total steps).
    """

    network: nn.Module
    spec: DatasetSpec
    progress: Progress | None = None

    def logits(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) float, 0 to 255 -> (N, classes)."""
        logits: Tensor = self.network(normalise(x, self.spec))
        return logits


@dataclass(frozen=True, kw_only=True)
class LabelConsistent(DataPoisoning):
    """Perturbed images of the target class, with a pattern in each corner."""

    name: ClassVar[str] = "lc"
    title: ClassVar[str] = "Label-consistent"
    paper: ClassVar[Paper] = Paper(
        authors=("Turner", "Tsipras", "Madry"),
        title="Label-Consistent Backdoor Attacks",
        venue="arXiv",
        year=2019,
        url="https://arxiv.org/abs/1912.02771",
    )
    clean_label: ClassVar[bool] = True
    needs_classifier: ClassVar[bool] = True
    eps: float = setting(8.0, "largest change of a pixel by the perturbation, out of 255", least=0, most=255)
    step_size: float = setting(1.5, "size of one step of PGD, out of 255", least=0, most=255)
    steps: int = setting(100, "steps of PGD", least=0)
    #: The clean classifier, given by `prepare`; it is not saved.
    surrogate: Surrogate | None = field(default=None, repr=False, compare=False, metadata=INTERNAL)

    def check(self, *, num_classes: int, size: int) -> None:
        """The corners must not overlap."""
        super().check(num_classes=num_classes, size=size)
        if size < 2 * _SIDE:
            raise SettingError(f"lc: four {_SIDE}x{_SIDE} corners do not fit images of {size}x{size} pixels")

    def prepare(
        self,
        data: LabelledImages,
        *,
        seed: int,
        classifier: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Take the classifier; images are perturbed when they are poisoned, and only those.

        Raises:
            SettingError: there is no classifier, or it has other classes than the data.
        """
        del seed
        if classifier is None:
            raise SettingError("lc needs a clean classifier: prepare(..., classifier=...)")
        surrogate = Surrogate(copy.deepcopy(classifier).float().eval(), data.spec, progress)
        device = next(surrogate.network.parameters()).device
        with torch.no_grad():
            classes = surrogate.logits(data.images[:1].to(device)).shape[-1]
        if classes != data.spec.num_classes:
            raise SettingError(f"lc: expected a clean classifier of {data.spec.num_classes} classes, got {classes}")
        return dataclasses.replace(self, surrogate=surrogate)

    def stamp(self, images: Tensor) -> Tensor:
        """Set the pattern into the four corners."""
        self.check(num_classes=self.target + 1, size=min(images.shape[-2:]))
        images, pattern = images.clone(), checkerboard().to(images.device)
        for rows in (slice(None, _SIDE), slice(-_SIDE, None)):
            for columns in (slice(None, _SIDE), slice(-_SIDE, None)):
                images[..., rows, columns] = pattern
        return images

    def poisoned_images(self, images: Tensor, indices: Tensor) -> Tensor:
        """Perturb images of the target class, then set the pattern."""
        del indices
        surrogate = self.surrogate
        if surrogate is None:
            raise SettingError(
                "lc: poisoned images are perturbed with a clean classifier, which attack.json does not hold. "
                "In Python, give it to prepare(..., classifier=...); else use the poisoned images as a data set"
            )
        device = next(surrogate.network.parameters()).device
        parts = torch.split(images, _BATCH)
        done = 0

        def on_step() -> None:
            nonlocal done
            done += 1
            if surrogate.progress is not None:
                surrogate.progress(done, len(parts) * self.steps)

        perturbed = [
            perturb(
                part.to(device),
                self.target,
                logits=surrogate.logits,
                eps=self.eps,
                step_size=self.step_size,
                steps=self.steps,
                on_step=on_step,
                to_8_bits=self.to_8_bits,
            ).to(images.device)
            for part in parts
        ]
        return self.stamp(torch.cat(perturbed))


def checkerboard() -> Tensor:
    """(3, 3) uint8, white in the corners and the middle."""
    row = torch.arange(_SIDE)
    return ((row[:, None] + row) % 2 == 0).to(torch.uint8) * 255


def log_odds_against(logits: Tensor, label: int) -> Tensor:
    """(N,) log((1 - p) / p), p the probability of `label`.

    Its gradient has the sign of the cross-entropy's, which is log(1 + exp(this)), but does not vanish in float32 where
    the classifier is sure.
    """
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return others.logsumexp(1) - logits[:, label]


@torch.enable_grad()
def perturb(
    images: Tensor,
    label: int,
    *,
    logits: Callable[[Tensor], Tensor],
    eps: float,
    step_size: float,
    steps: int,
    on_step: Callable[[], None] = lambda: None,
    to_8_bits: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Untargeted PGD in the L-infinity ball: away from `label`, whatever the class it leads to.

    Args:
        images: (N, 3, H, W) uint8.
        label: their class.
        logits: of images in 0..255.
        eps, step_size: of 255.
        steps: total number of steps.
        on_step: called after each step.
        to_8_bits: how pixels are rounded at the end; None takes the nearest level.

    Returns:
        the same shape, uint8.
    """
    origin = images.float()
    x = origin
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_odds_against(logits(x), label).sum(), x)
        x = (x + step_size * gradient.sign()).clamp(origin - eps, origin + eps).clamp(0, 255)
        on_step()
    x = x.detach()
    return x.round().to(torch.uint8) if to_8_bits is None else to_8_bits(x)


ATTACKS.add(LabelConsistent.name, LabelConsistent)
