"""The hooks of an attack that controls the training: edit each batch, add a loss, take its own steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from unbackdoor.data.augment import Augmentation

#: Called with (steps done, total steps).
Progress = Callable[[int, int], None]

#: (B, C, H, W) uint8 images and a generator -> the same images augmented and normalised, float32.
Vary = Callable[[Tensor, torch.Generator], Tensor]


class Control(Protocol):
    """An attack that controls the training; its text (`str`) identifies it when a run is resumed."""

    @property
    def augmentation(self) -> Augmentation | None:
        """How images are augmented after the trigger is added; None takes the recipe's augmentation."""


class Session(Protocol):
    """Such an attack during one run; the training loop calls these methods, in this order."""

    @property
    def attack(self) -> Control:
        """The attack."""

    @property
    def rate(self) -> float:
        """Share of each batch that is attacked."""

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

    def after(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Edit a normalised batch after augmentation; returns images, labels, and a loss to add or None."""

    def step(self, done: float) -> None:
        """Called after each gradient step; `done` is the share of all steps that are done."""

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
