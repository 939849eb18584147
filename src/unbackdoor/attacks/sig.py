"""SIG (Barni et al., ICIP 2019).

x' = clip(x + delta sin(2 pi j f / W), 0, 255), j the column, the same for all rows and channels. Only images of the
target class are poisoned and no label changes, so that the rate cannot exceed that class's share of the data; it is
counted over all images, and a larger rate is capped, with a note.

Departures:
    - Triggered images are rounded to 8 bits. BackdoorBench truncates them (`sig@backdoorbench`).
    - The strength is the same in training and at test time. The paper also tests with a stronger trigger than it trains
      with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacks.base import ATTACKS
from unbackdoor.attacks.poisoning import DataPoisoning
from unbackdoor.errors import SettingError
from unbackdoor.papers import Paper
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class SIG(DataPoisoning):
    """A sinusoidal stripe pattern."""

    name: ClassVar[str] = "sig"
    title: ClassVar[str] = "SIG"
    paper: ClassVar[Paper] = Paper(
        authors=("Barni", "Kallas", "Tondi"),
        title="A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning",
        venue="ICIP",
        year=2019,
        url="https://arxiv.org/abs/1902.11237",
    )
    clean_label: ClassVar[bool] = True
    delta: float = setting(40.0, "amplitude, out of 255 (40 in the field's benchmarks)", above=0, most=255)
    frequency: float = setting(6.0, "periods over the image's width", above=0, below=1e4)

    @classmethod
    def backdoorbench(cls) -> SIG:
        """BackdoorBench's delta and frequency, triggered files truncated to 8 bits."""
        return cls(rounding="truncate")

    def check(self, *, num_classes: int, size: int) -> None:
        """The wave must not be zero in every column, as with 8 periods over 16 pixels."""
        super().check(num_classes=num_classes, size=size)
        if not self.wave(size).round().any():
            raise SettingError(
                f"sig: a wave of frequency={self.frequency:g} and delta={self.delta:g} is 0 in all {size} columns; "
                "choose another frequency"
            )

    def wave(self, width: int) -> Tensor:
        """(W,) delta sin(2 pi j f / W)."""
        columns = torch.arange(width, dtype=torch.float64)
        return (self.delta * torch.sin(2 * math.pi * columns * self.frequency / width)).float()

    def stamp(self, images: Tensor) -> Tensor:
        """Add the wave, clip, and round to 8 bits."""
        wave = self.wave(images.shape[-1]).to(images.device)
        return self.to_8_bits(images.float() + wave)


ATTACKS.add(SIG.name, SIG)
