"""Triggers found by optimisation: the smallest that sends most images to a class.

    mask        (1 - m) x + m p, with a mask m in [0, 1] for all colours and a pattern p; its size is the sum of m
                (Neural Cleanse, Wang et al., IEEE S&P 2019, Eq. 2)
    additive    clip(x + d); its size is the L2 norm of d

Adam minimises cross-entropy + lambda * size. lambda rises while the trigger succeeds on enough of a batch, and falls
while it does not. The smallest trigger that succeeded is kept.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unbackdoor.defender.on_pixels import OnPixels

#: lambda's factors after a step that succeeded and after one that did not.
UP, DOWN = 1.15, 1 / 1.2


class Form(ABC):
    """A family of triggers; `free` is what is optimised."""

    name: ClassVar[str]
    lr: ClassVar[float]
    #: lambda at the start, for images of 1,024 pixels; it falls with their number.
    weight: ClassVar[float]

    free: list[Tensor]

    @abstractmethod
    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator, device: torch.device) -> None:
        """A random start for images of this shape."""

    @abstractmethod
    def __call__(self, pixels: Tensor) -> Tensor:
        """Put the trigger on (N, C, H, W) images in [0, 1]."""

    @abstractmethod
    def size(self) -> Tensor:
        """A scalar with gradients."""


class Mask(Form):
    """A mask and a pattern."""

    name = "mask"
    lr = 0.2
    weight = 1e-3

    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator, device: torch.device) -> None:
        channels, height, width = shape
        self._mask = _free((1, 1, height, width), 0.1, generator, device)
        self._pattern = _free((1, channels, height, width), 1.0, generator, device)
        self.free = [self._mask, self._pattern]

    def __call__(self, pixels: Tensor) -> Tensor:
        mask = self._mask.sigmoid()
        return (1 - mask) * pixels + mask * self._pattern.sigmoid()

    def size(self) -> Tensor:
        return self._mask.sigmoid().sum()


class Additive(Form):
    """A pattern that is added."""

    name = "additive"
    lr = 0.02
    weight = 1e-2

    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator, device: torch.device) -> None:
        self._pattern = _free((1, *shape), 0.02, generator, device)
        self.free = [self._pattern]

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels + self._pattern).clamp(0, 1)

    def size(self) -> Tensor:
        return (self._pattern.square().sum() + 1e-8).sqrt()


FORMS: tuple[type[Form], ...] = (Mask, Additive)


def _free(shape: tuple[int, ...], scale: float, generator: torch.Generator, device: torch.device) -> Tensor:
    return (scale * torch.randn(shape, generator=generator)).to(device).requires_grad_()


@dataclass(frozen=True)
class Trigger:
    """The smallest trigger of a form that was found for a class.

    Attributes:
        label: the class.
        form: the trigger; None if none succeeded.
        size: its size; infinity if none succeeded.
        success: share of the last batches that answered the class, whatever the size.
    """

    label: int
    form: Form | None
    size: float
    success: float


def reconstruct(
    shown: OnPixels,
    pixels: Tensor,
    label: int,
    kind: type[Form],
    *,
    steps: int,
    batch: int,
    success: float,
    generator: torch.Generator,
) -> Trigger:
    """The smallest trigger of a form that sends images to a class.

    Args:
        shown: the network; its weights take no gradients.
        pixels: (N, C, H, W) in [0, 1], images that are not answered with the class.
        label: the class.
        kind: the form.
        steps: of Adam.
        batch: images a step, drawn with replacement.
        success: share of a batch that a trigger must move.
        generator: for the start and the batches.
    """
    channels, height, width = pixels.shape[1:]
    pixels = pixels.to(shown.device)
    form = kind((channels, height, width), generator, shown.device)
    optimiser = torch.optim.Adam(form.free, lr=kind.lr, betas=(0.5, 0.9))
    wanted = torch.full((batch,), label, device=shown.device)
    weight = kind.weight * 1024 / (height * width)
    smallest, kept, rate = math.inf, None, 0.0
    for _ in range(steps):
        drawn = torch.randint(len(pixels), (batch,), generator=generator).to(shown.device)
        logits = shown(form(pixels[drawn]))
        moved = float((logits.detach().argmax(1) == label).float().mean())
        rate = 0.8 * rate + 0.2 * moved
        size = form.size()
        if moved >= success and float(size.detach()) < smallest:
            smallest, kept = float(size.detach()), [free.detach().clone() for free in form.free]
        loss = F.cross_entropy(logits, wanted) + weight * size
        for free, gradient in zip(form.free, torch.autograd.grad(loss, form.free), strict=True):
            free.grad = gradient
        optimiser.step()
        weight *= UP if moved >= success else DOWN
    if kept is None:
        return Trigger(label, None, math.inf, rate)
    with torch.no_grad():
        for free, best in zip(form.free, kept, strict=True):
            free.copy_(best)
    return Trigger(label, form, smallest, rate)
