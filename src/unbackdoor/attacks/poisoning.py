"""Attacks on the training set alone: some images are changed once, then training is ordinary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unbackdoor.attacks.base import Attack, Poisoned, poison_count
from unbackdoor.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class DataPoisoning(Attack):
    """An attack on the training set alone: some images are changed once, then training is ordinary."""

    def poison(
        self, images: Tensor, labels: Tensor, *, rate: float, num_classes: int, generator: torch.Generator
    ) -> Poisoned:
        """Put the trigger on round(rate * N) images, and change their labels unless the attack is clean-label."""
        self.check_rate(rate, labels)
        count = poison_count(rate, len(labels))
        candidates = self.candidates(labels)
        order = torch.randperm(len(candidates), generator=generator)
        chosen = candidates[order[:count]]
        note = ""
        if len(chosen) < count:
            note = (
                f"{self.name}: only {len(candidates)} of {len(labels)} training images have class {self.target}; "
                f"the rate is {len(chosen) / len(labels):.4f} instead of {rate}"
            )
        mask = torch.zeros(len(labels), dtype=torch.bool)
        mask[chosen] = True
        images, labels = images.clone(), labels.clone()
        if len(chosen):
            images[chosen] = self.poisoned_images(images[chosen], chosen)
        if not self.clean_label:
            labels[chosen] = self.target_labels(labels[chosen], num_classes)
        return Poisoned(images, labels, mask, note)

    def check_rate(self, rate: float, labels: Tensor, *, batches: Sequence[int] = (), epochs: int = 1) -> None:
        """Check the rate over all images; batches do not matter."""
        del batches, epochs
        if poison_count(rate, len(labels)) and not len(self.candidates(labels)):
            raise SettingError(f"{self.name}: no training image has the target class {self.target}")

    def candidates(self, labels: Tensor) -> Tensor:
        """Indices of the images that may be poisoned: all, or those of the target class."""
        if self.clean_label:
            return (labels == self.target).nonzero().flatten()
        return torch.arange(len(labels))

    def poisoned_images(self, images: Tensor, indices: Tensor) -> Tensor:
        """The poisoned form of training images: with the trigger, unless an attack changes them in another way.

        Args:
            images: (n, 3, H, W) uint8.
            indices: (n,) their positions in the training set.
        """
        del indices
        return self.stamp(images)
