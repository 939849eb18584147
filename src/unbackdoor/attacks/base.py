"""What every attack can do: stamp its trigger on test images, and poison a training set."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from unbackdoor.config import build, read_options
from unbackdoor.errors import SettingError
from unbackdoor.registry import Registry

ATTACKS: Registry[type[Attack]] = Registry("attack")


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set.

    Attributes:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64, the target where poisoned.
        mask: (N,) bool, which images carry the trigger.
    """

    images: Tensor
    labels: Tensor
    mask: Tensor

    @property
    def rate(self) -> float:
        """The share of images that carry the trigger."""
        return float(self.mask.float().mean())


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An all-to-one backdoor attack; the fields are its hyper-parameters.

    Attributes:
        target: the class that the trigger asks for.
    """

    name: ClassVar[str]
    target: int = 0

    def check_target(self, num_classes: int) -> None:
        """SettingError unless the target is one of the data set's classes."""
        if not 0 <= self.target < num_classes:
            raise SettingError(f"target: expected one of the classes 0 to {num_classes - 1}, got {self.target}")

    @abstractmethod
    def stamp(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> the same shape and dtype, with the trigger; the input is left as it is.

        Triggered images are 8-bit, as the image files that an attacker hands over are.
        """

    def poison(self, images: Tensor, labels: Tensor, *, rate: float, generator: torch.Generator) -> Poisoned:
        """Stamp round(rate * N) images drawn from all classes, and relabel them.

        Args:
            images: (N, 3, H, W) uint8.
            labels: (N,) int64.
            rate: share of *all* training images, 0 to 1.
            generator: draws the images.

        Raises:
            SettingError: the rate is outside [0, 1], or poisons not a single image.
        """
        if not 0 <= rate <= 1:
            raise SettingError(f"poison rate: expected a share between 0 and 1, got {rate}")
        count = round(rate * len(labels))
        if rate > 0 and count == 0:
            raise SettingError(f"poison rate {rate} of {len(labels)} images poisons none; use a larger rate")
        chosen = torch.randperm(len(labels), generator=generator)[:count]
        mask = torch.zeros(len(labels), dtype=torch.bool)
        mask[chosen] = True
        images, labels = images.clone(), labels.clone()
        images[chosen] = self.stamp(images[chosen])
        labels[chosen] = self.target
        return Poisoned(images, labels, mask)


def parse_attack(text: str, *, target: int = 0) -> Attack:
    """`badnet` or `badnet:size=3,pattern=white` -> an attack.

    Raises:
        SettingError: the attack is unknown, or a setting is.
    """
    name, _, options = text.partition(":")
    return build(ATTACKS[name], f"attack {name}", {"target": target, **read_options(options)})


def describe_attack(attack: Attack) -> dict[str, Any]:
    """Name and settings, ready for JSON; `read_attack` reads it back."""
    return {"name": attack.name, **dataclasses.asdict(attack)}


def read_attack(record: Mapping[str, Any]) -> Attack:
    """The inverse of `describe_attack`.

    Raises:
        SettingError: the record has no name, or an unknown setting.
    """
    settings = dict(record)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise SettingError("attack record: expected an entry 'name'")
    return build(ATTACKS[name], f"attack {name}", settings)


def load_attack(path: Path) -> Attack:
    """Read the attack.json that a training run leaves.

    Raises:
        SettingError: it is missing, or describes no known attack.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(f"{path}: expected the attack.json of a training run: {error}") from error
    if not isinstance(record, dict):
        raise SettingError(f"{path}: expected the attack.json of a training run, an object with a name")
    return read_attack(record)
