"""Triggers found by optimisation: the smallest that sends most images to a class.

    mask        (1 - m) x + m p, with a mask m in [0, 1] for all colours and a pattern p; its size is the sum of m
                (Neural Cleanse, Wang et al., IEEE S&P 2019, Eq. 2)
    patch       the same within one window, see `defender.windows`
    additive    clip(x + d); its size is the L2 norm of d
    filter      clip(x + r(x)), with two 3x3 convolutions r; its size is the mean L2 norm of what they add. It stands
                for triggers that depend on the image: warped, quantised, drawn by a network

All classes are compared by hasty searches: a trigger is small after few steps from nearly every start. Where a class is
hard to reach, as after a repair, a patient one succeeds more often.

Adam minimises cross-entropy + lambda * size. lambda rises while the trigger succeeds on enough of a batch, and falls
while it does not. The smallest trigger that succeeded is kept.
"""

from __future__ import annotations

import copy
import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unbackdoor.defender.case import Progress, silent
from unbackdoor.defender.deviations import LEAST, deviations
from unbackdoor.defender.on_pixels import OnPixels, gradients, needs_gradients
from unbackdoor.defender.surrogates import Impressions
from unbackdoor.defender.windows import Window, easiest_window

#: The share of the steps that the coarse round has.
COARSE = 0.4
#: The most promising classes that have all steps, where there are many classes.
MOST = 20


class Form(ABC):
    """A family of triggers; `free` is what is optimised."""

    name: ClassVar[str]
    lr: ClassVar[float]
    #: lambda at the start, for images of 1,024 pixels; it falls with their number.
    weight: ClassVar[float]
    #: lambda's factors after a step that succeeded and after one that did not.
    up: ClassVar[float] = 1.3
    down: ClassVar[float] = 1 / 1.4

    free: list[Tensor]

    @abstractmethod
    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator, device: torch.device) -> None:
        """A random start for images of this shape."""

    @classmethod
    def begun(cls, shown: OnPixels, pixels: Tensor, label: int, generator: torch.Generator) -> Form:
        """A start for a network and a class.

        Args:
            shown, pixels, label: as in `Search`.
            generator: of what is drawn.
        """
        del pixels, label
        return cls(shown.spec.shape, generator, shown.device)

    @abstractmethod
    def __call__(self, pixels: Tensor) -> Tensor:
        """Put the trigger on (N, C, H, W) images in [0, 1]."""

    @abstractmethod
    def size(self) -> Tensor:
        """A scalar with gradients."""


class Patient(Form):
    """lambda changes more slowly: it succeeds where a hasty search finds nothing, and needs more steps to be small."""

    up, down = 1.15, 1 / 1.2


class Mask(Form):
    """A mask and a pattern."""

    name = "mask"
    lr = 0.8
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


class PatientMask(Patient, Mask):
    """A mask and a pattern, in smaller steps too."""

    lr = 0.2


class Patch(PatientMask):
    """A mask and a pattern within the window that leads to the class most easily."""

    name = "patch"

    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator, device: torch.device) -> None:
        """The whole image is the window."""
        super().__init__(shape, generator, device)
        self._window, self._sides = Window(0, 0, self._pattern.detach(), math.inf), shape[1:]

    @classmethod
    def begun(cls, shown: OnPixels, pixels: Tensor, label: int, generator: torch.Generator) -> Form:
        found = cls(shown.spec.shape, generator, shown.device)
        window = found._window = easiest_window(shown, pixels, label, generator)
        found._mask = torch.full_like(window.pattern[:, :1], 2.0).requires_grad_()
        found._pattern = window.pattern.clone().requires_grad_()
        found.free = [found._mask, found._pattern]
        return found

    def __call__(self, pixels: Tensor) -> Tensor:
        mask, pattern = self._mask.sigmoid(), self._pattern.sigmoid()
        place = functools.partial(self._window.whole, height=self._sides[0], width=self._sides[1])
        return (1 - place(mask)) * pixels + place(mask * pattern)


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


class PatientAdditive(Patient, Additive):
    """A pattern that is added."""


class Filter(Patient):
    """What two small convolutions make of the image is added to it."""

    name = "filter"
    lr = 0.02
    weight = 9e-3

    #: Between the two convolutions.
    WIDTH: ClassVar[int] = 8

    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator, device: torch.device) -> None:
        channels, width = shape[0], self.WIDTH
        self.free = [
            _free((width, channels, 3, 3), 0.3, generator, device),
            _free((width,), 0.1, generator, device),
            _free((channels, width, 3, 3), 0.02, generator, device),
            _free((channels,), 0.01, generator, device),
        ]
        self._added: Tensor | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        first, bias, second, shift = self.free
        hidden = F.relu(F.conv2d(2 * pixels - 1, first, bias, padding=1))
        self._added = F.conv2d(hidden, second, shift, padding=1)
        return (pixels + self._added).clamp(0, 1)

    def size(self) -> Tensor:
        assert self._added is not None, "put it on an image first"
        return (self._added.flatten(1).square().sum(1) + 1e-8).sqrt().mean()

    def __deepcopy__(self, memo: dict[int, Any]) -> Filter:
        twin = copy.copy(self)
        twin.free, twin._added = [free.detach().clone().requires_grad_() for free in self.free], None
        return twin


#: The forms that are compared over all classes. A filter costs as much again, and few triggers need it.
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


class Search:
    """Adam on one form for one class; it can be continued.

    Args:
        shown: the network; its weights take no gradients.
        label: the class.
        kind: the form.
        batch: images a step, drawn with replacement.
        success: share of a batch that a trigger must move.
        generator: for the start and the batches.
    """

    def __init__(
        self,
        shown: OnPixels,
        label: int,
        kind: type[Form],
        *,
        batch: int,
        success: float,
        generator: torch.Generator,
    ) -> None:
        height, width = shown.spec.shape[1:]
        self._shown, self._label, self._batch, self._success, self._generator = shown, label, batch, success, generator
        self._kind = kind
        self._begun: tuple[Form, torch.optim.Optimizer] | None = None
        self._weight = kind.weight * 1024 / (height * width)
        self._smallest, self._rate = math.inf, 0.0
        self._kept: list[Tensor] | None = None

    def run(self, pixels: Tensor, steps: int) -> Trigger:
        """The smallest trigger that was found so far, after that many more steps.

        Args:
            pixels: (N, C, H, W) in [0, 1], images that are not answered with the class.
            steps: of Adam.

        Raises:
            MethodError: the network gives no gradients.
        """
        device = self._shown.device
        if self._begun is None:
            form = self._kind.begun(self._shown, pixels, self._label, self._generator)
            self._begun = form, torch.optim.Adam(form.free, lr=form.lr, betas=(0.5, 0.9))
        form, optimiser = self._begun
        wanted = torch.full((self._batch,), self._label, device=device)
        for _ in range(steps):
            drawn = torch.randint(len(pixels), (self._batch,), generator=self._generator)
            logits = self._shown(form(pixels[drawn].to(device)))
            needs_gradients(logits)
            moved = float((logits.detach().argmax(1) == self._label).float().mean())
            self._rate = 0.8 * self._rate + 0.2 * moved
            size = form.size()
            if moved >= self._success and float(size.detach()) < self._smallest:
                self._smallest = float(size.detach())
                self._kept = [free.detach().clone() for free in form.free]
            loss = F.cross_entropy(logits, wanted) + self._weight * size
            for free, gradient in zip(form.free, gradients(loss, form.free), strict=True):
                free.grad = gradient
            optimiser.step()
            self._weight *= form.up if moved >= self._success else form.down
        if self._kept is None:
            return Trigger(self._label, None, math.inf, self._rate)
        best = copy.deepcopy(form)
        with torch.no_grad():
            for free, kept in zip(best.free, self._kept, strict=True):
                free.copy_(kept)
                free.grad = None
        return Trigger(self._label, best, self._smallest, self._rate)


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
    """The smallest trigger of a form that sends images to a class: one `Search`.

    Args:
        pixels: (N, C, H, W) in [0, 1], images that are not answered with the class.
    """
    return Search(shown, label, kind, batch=batch, success=success, generator=generator).run(pixels, steps)


@dataclass(frozen=True)
class Smallest:
    """The smallest triggers of one form, one a class.

    Attributes:
        triggers: by class; those of the classes that only had the coarse round are larger than they could be.
        sizes: the same, as they are compared: for such a class, what the other steps would have left, by the median of
            the classes drawn by chance that had them.
    """

    triggers: tuple[Trigger, ...]
    sizes: tuple[float, ...]

    @property
    def scores(self) -> list[float]:
        """By how many robust deviations each log size lies below the median."""
        reached = [math.log(max(size, 1e-9)) for size in self.sizes]
        return [-z if math.isfinite(z) else 0.0 for z in deviations(reached, least=LEAST, middle="lower")]


def smallest(
    shown: OnPixels,
    made: Impressions,
    kind: type[Form],
    *,
    steps: int,
    batch: int,
    success: float,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Smallest:
    """The smallest trigger of a form for each class, on the impressions that are not answered with it.

    A coarse round of `COARSE` of the steps is run for every class. Then the most promising quarter and a few others,
    drawn by chance, have the rest of the steps.

    Args:
        shown: the network; its weights take no gradients.
        made: its impressions.
        kind: the form.
        steps: of Adam in all.
        batch: images a step, drawn with replacement.
        success: share of a batch that a trigger must move.
        generator: for the starts, the batches and the others.
        progress: called with (steps done, steps in all, a note).
    """
    classes = shown.classes
    promising, others = min(MOST, max(3, math.ceil(classes / 4))), max(2, min(5, classes // 8))
    by_chance = set(torch.randperm(classes, generator=generator)[:others].tolist())
    first = max(1, round(COARSE * steps)) if promising + others < classes else steps
    total = classes * first + (promising + others) * (steps - first)
    done = 0
    found: dict[int, Trigger] = {}
    running: dict[int, Search] = {}

    def run(label: int, search: Search, count: int) -> None:
        nonlocal done
        pixels = made.images[made.answers != label]
        found[label] = search.run(pixels, count) if len(pixels) else Trigger(label, None, math.inf, 0.0)
        done += count
        progress(done, total, f"{kind.name} of class {label}: {found[label].size:.3g}")

    for label in range(classes):
        running[label] = Search(shown, label, kind, batch=batch, success=success, generator=generator)
        run(label, running[label], first)
        # Only what will be continued is kept: a thousand classes of large images would not fit.
        ranked = sorted(running.keys() - by_chance, key=lambda one: _order(found[one]))
        running = {one: running[one] for one in [*ranked[:promising], *sorted(by_chance & running.keys())]}
    coarse = dict(found)
    if first < steps:
        for label, search in running.items():
            run(label, search, steps - first)
    progress(total, total, kind.name)
    gains = sorted(math.log(found[one].size / coarse[one].size) for one in by_chance if math.isfinite(coarse[one].size))
    gain = math.exp(gains[len(gains) // 2]) if gains else 1.0
    labels = range(classes)
    sizes = [found[label].size * (1.0 if label in running else gain) for label in labels]
    return Smallest(tuple(found[label] for label in labels), tuple(sizes))


def _order(trigger: Trigger) -> tuple[float, float]:
    """Small triggers first; of those that did not succeed, the one that came closest."""
    return trigger.size, -trigger.success
