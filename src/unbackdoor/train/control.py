"""What an attack may do that controls the training: edit each batch, add a loss, take steps of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from unbackdoor.data.augment import Augmentation

#: Called with (steps done, steps in all).
Progress = Callable[[int, int], None]

#: (B, C, H, W) uint8 images and a generator -> the same images augmented and normalised, float32.
Vary = Callable[[Tensor, torch.Generator], Tensor]


class Control(Protocol):
    """An attack by whoever trains; its text (`str`) tells one run from another."""

    @property
    def augmentation(self) -> Augmentation | None:
        """How images are varied behind the trigger; None is as the recipe says."""


class Session(Protocol):
    """Such an attack during one run: what the training loop calls, in this order."""

    @property
    def attack(self) -> Control:
        """Whose it is."""

    @property
    def rate(self) -> float:
        """Share of each batch that is attacked."""

    def begin(self, images: Tensor, *, batch_size: int, vary: Vary, progress: Progress | None = None) -> None:
        """Before the first epoch.

        Args:
            images: (N, 3, H, W) uint8, the training images.
            batch_size: of the recipe.
            vary: the augmentation of this run.
            progress: called with (steps done, steps in all).
        """

    def before(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Edit a uint8 batch before augmentation; it may come back as floats in 0..255."""

    def after(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Edit a normalised batch behind augmentation; the third is a loss to add, or None."""

    def step(self, done: float) -> None:
        """Behind the gradient step; `done` is the share of all steps that lie behind."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
