"""Training recipes as frozen values, each number with its source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from unbackdoor.errors import SettingError
from unbackdoor.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained with SGD.

    Attributes:
        name: what a user types.
        epochs: passes over the training set.
        lr: the largest learning rate.
        schedule: "cosine" falls from lr to 0 over all steps; "onecycle" rises linearly over the first fifth of
            the steps, then falls linearly to 0.
        batch_size: images a step; a last, smaller batch is kept.
        momentum, nesterov, weight_decay: of SGD.
        crop_padding: zero pixels around an image before a random crop of its own size; 0 is no crop.
    """

    name: str
    epochs: int
    lr: float
    schedule: Literal["cosine", "onecycle"] = "cosine"
    batch_size: int = 128
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    crop_padding: int = 4

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise SettingError(f"epochs: expected at least 1, got {self.epochs}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise SettingError(f"lr: expected a positive number, got {self.lr}")
        if self.schedule not in ("cosine", "onecycle"):
            raise SettingError(f"schedule: expected cosine or onecycle, got {self.schedule!r}")
        if self.crop_padding < 0:
            raise SettingError(f"crop padding: expected 0 pixels or more, got {self.crop_padding}")
        if self.batch_size < 2:
            raise SettingError(f"batch size: expected at least 2, got {self.batch_size}")

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 0) of `steps`."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        peak = max(1, steps // 5)
        if step < peak:
            return self.lr * (step + 1) / peak
        return self.lr * (steps - step) / (steps - peak + 1)


RECIPES: Registry[Recipe] = Registry("recipe")
for _recipe in (
    # One-cycle for small budgets (Smith & Topin, 2018): the usual CIFAR-10 settings, fixed before any network of
    # this project was trained, and not tuned on a test set.
    Recipe(name="fast", epochs=15, lr=0.1, schedule="onecycle", nesterov=True),
    # LPP's paper, Sec. 4.1.2, for CIFAR-10; weight decay and augmentation are not printed: the field's usual.
    Recipe(name="paper", epochs=100, lr=0.001),
    # BackdoorBench's general settings for CIFAR-10.
    Recipe(name="backdoorbench", epochs=100, lr=0.01),
    # The code of CLP's authors.
    Recipe(name="clp", epochs=150, lr=0.1),
):
    RECIPES.add(_recipe.name, _recipe)
