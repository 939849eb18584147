"""Attacks by someone who controls the training: each batch is edited during training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unbackdoor.attacks.base import Attack, Poisoned, Progress, poison_count
from unbackdoor.data.augment import Augmentation, Fill, Shared
from unbackdoor.errors import SettingError
from unbackdoor.settings import setting
from unbackdoor.train.control import Vary

if TYPE_CHECKING:
    from unbackdoor.data import DatasetSpec


@dataclass(frozen=True, kw_only=True)
class TrainingControl(Attack):
    """An attack by someone who controls the training: each batch is edited during training."""

    @property
    def augmentation(self) -> Augmentation | None:
        """How images are augmented after the trigger is added; None takes the recipe's augmentation."""
        return None

    def trained_on(self, values: Tensor) -> Tensor:
        """Pixels in 0..255 as training sees them: 8-bit, or floats if only files are truncated."""
        return values.clamp(0, 255) if self.rounding == "truncate" else self.to_8_bits(values)

    def session(self, *, rate: float, spec: DatasetSpec, seed: int, epochs: int, device: torch.device) -> Session:
        """Begin the attack on one training run."""
        del seed, epochs, device
        return Session(self, rate=rate, spec=spec)

    def attacked(self, rate: float, size: int) -> float:
        """How many images of a batch of `size` are attacked; a value below 1 is an average over batches."""
        return whole(rate * size) if rate * size >= 1 else rate * size

    def check_rate(self, rate: float, labels: Tensor, *, batches: Sequence[int] = (), epochs: int = 1) -> None:
        """Check the rate over all batches of the whole training run."""
        del labels
        expected = epochs * sum(self.attacked(rate, size) for size in batches)
        if rate > 0 and expected < 1:
            raise SettingError(
                f"poison rate {rate}: expected at least one attacked image, but {epochs} epochs would see "
                f"{expected:.2g} on average; use a larger rate"
            )

    @abstractmethod
    def mix(self, images: Tensor, labels: Tensor, *, count: int, num_classes: int, generator: torch.Generator) -> Mixed:
        """Edit a batch before augmentation.

        Args:
            images: (B, 3, H, W) uint8.
            labels: (B,) int64.
            count: the first `count` images are attacked.
            num_classes: of the data set.
            generator: on the CPU.
        """

    def poison(
        self, images: Tensor, labels: Tensor, *, rate: float, num_classes: int, generator: torch.Generator
    ) -> Poisoned:
        """Treat all images as one batch in random order: round(rate * N) are attacked, others become cover images."""
        count = min(poison_count(rate, len(labels)), whole(self.attacked(1.0, len(labels))))
        order = torch.randperm(len(labels), generator=generator)
        mixed = self.mix(images[order], labels[order], count=count, num_classes=num_classes, generator=generator)
        back = order.argsort()
        edited = mixed.images if mixed.images.dtype == torch.uint8 else self.to_8_bits(mixed.images)
        return Poisoned(edited[back], mixed.labels[back], back < mixed.attacked)


@dataclass(frozen=True, kw_only=True)
class PostAugmented(TrainingControl):
    """An attack with its own augmentation after the trigger: WaNet (Sec. 4 of its paper), and BPP."""

    shared: Shared = setting(
        "nothing",
        'what the images of a batch have in common: "nothing"; the "coins" that say whether they are cropped and '
        'rotated; or "all": one crop, one angle and one mirror image for the whole batch',
        own=True,
        added=True,
    )
    fill: Fill = setting(
        "black",
        'what a crop or a rotation brings in from outside: "black", or the data set\'s "mean" colour',
        own=True,
        added=True,
    )

    @property
    def augmentation(self) -> Augmentation:
        """Random crops and small rotations, which the trigger learns to survive."""
        return Augmentation(padding=5, crop_share=0.8, degrees=10, rotate_share=0.5, shared=self.shared, fill=self.fill)


@dataclass(frozen=True)
class Mixed:
    """A batch that an attack has edited: attacked images first, then `cover` with their own labels, then the rest.

    Attributes:
        images: (B, 3, H, W) uint8, or float in 0..255 if the attack does not round training images.
        labels: (B,) int64.
        attacked, cover: how many of each.
    """

    images: Tensor
    labels: Tensor
    attacked: int
    cover: int


class Session:
    """A training-controlled attack during one run: what the training loop calls.

    Args:
        attack: the attack.
        rate: share of each batch that is attacked.
        spec: the data set.
    """

    def __init__(self, attack: TrainingControl, *, rate: float, spec: DatasetSpec) -> None:
        poison_count(rate, 10**9)  # checks the range
        self.attack: TrainingControl = attack
        self.rate = rate
        self.spec = spec

    def begin(self, images: Tensor, *, batch_size: int, vary: Vary, progress: Progress | None = None) -> None:
        """Called before the first epoch.

        Args:
            images: (N, 3, H, W) uint8, the training images.
            batch_size: of the recipe.
            vary: the augmentation of this run.
            progress: called with (steps done, total steps).
        """

    def before(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Edit a uint8 batch before augmentation; it may come back as floats in 0..255."""
        count = attacked_in_batch(self.rate, len(labels), generator)
        mixed = self.attack.mix(images, labels, count=count, num_classes=self.spec.num_classes, generator=generator)
        return mixed.images, mixed.labels

    def after(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Edit a normalised batch after augmentation; returns images, labels, and a loss to add or None."""
        del generator
        return x, labels, None

    def step(self, done: float) -> None:
        """Called after each gradient step; `done` is the share of all steps that are done."""

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""

    def result(self) -> Attack:
        """The attack as it is after training."""
        return self.attack


def attacked_in_batch(rate: float, size: int, generator: torch.Generator) -> int:
    """The number of attacked images in a batch; an expected number below 1 is the probability of one."""
    wanted = rate * size
    if wanted >= 1 or wanted == 0:
        return whole(wanted)
    return int(torch.rand((), generator=generator) < wanted)


def others(places: slice, size: int, *, generator: torch.Generator) -> Tensor:
    """(n,) for each of these positions in a batch of `size`, a random other position."""
    own = torch.arange(size)[places]
    if not len(own):
        return own
    if size < 2:
        raise SettingError("batch size: expected at least 2, so that an image can be mixed with another, got 1")
    return (own + torch.randint(1, size, (len(own),), generator=generator)) % size


def whole(number: float) -> int:
    """int(number), without rounding errors: 0.29 * 100, computed as 28.999999999999996, is 29."""
    return int(number + 1e-9)
