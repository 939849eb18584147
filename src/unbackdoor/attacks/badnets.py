"""BadNets (Gu et al., arXiv 2017).

x[:, H-k:, W-k:] = t, with t a k x k patch (`place` moves it). The trigger is set before augmentation, so a random crop
may cut it; images of the target class may be drawn too.

Departures: None from the paper. The patch is built at the data set's own resolution. BackdoorBench resizes a 32x32 mask
instead, which gives about 6x6 blurred pixels on 64x64 images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unbackdoor.attacks.base import ATTACKS
from unbackdoor.attacks.poisoning import DataPoisoning
from unbackdoor.errors import SettingError
from unbackdoor.papers import Paper
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class BadNets(DataPoisoning):
    """The patch attack."""

    name: ClassVar[str] = "badnet"
    title: ClassVar[str] = "BadNets"
    paper: ClassVar[Paper] = Paper(
        authors=("Gu", "Dolan-Gavitt", "Garg"),
        title="BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain",
        venue="arXiv",
        year=2017,
        url="https://arxiv.org/abs/1708.06733",
    )
    size: int = setting(3, "side k of the patch in pixels (3 in the paper that introduces LPP)", least=1)
    pattern: Literal["white", "checkerboard"] = setting(
        "white", '"white", or "checkerboard" of white and black beginning with white'
    )

    place: Literal["bottom-right", "bottom-left", "top-right", "top-left", "centre"] = setting(
        "bottom-right", "where the patch is", added=True
    )

    def check(self, *, num_classes: int, size: int) -> None:
        """The patch must fit too."""
        super().check(num_classes=num_classes, size=size)
        if size < self.size:
            raise SettingError(f"badnet: a {self.size}x{self.size} patch does not fit images of {size}x{size} pixels")

    def patch(self) -> Tensor:
        """(k, k) uint8."""
        if self.pattern == "white":
            return torch.full((self.size, self.size), 255, dtype=torch.uint8)
        row = torch.arange(self.size)
        return ((row[:, None] + row[None, :]) % 2 == 0).to(torch.uint8) * 255

    def stamp(self, images: Tensor) -> Tensor:
        """Set the patch into its corner, or into the centre."""
        self.check(num_classes=self.target + 1, size=min(images.shape[-2:]))
        vertical, _, horizontal = self.place.partition("-")
        top = _offset(vertical, images.shape[-2], self.size)
        left = _offset(horizontal or "centre", images.shape[-1], self.size)
        images = images.clone()
        images[..., top : top + self.size, left : left + self.size] = self.patch().to(images.device)
        return images


def _offset(place: str, side: int, size: int) -> int:
    """The first of `size` pixels that lie at this end, or in the middle, of `side` pixels."""
    if place == "centre":
        return (side - size) // 2
    return side - size if place in ("bottom", "right") else 0


ATTACKS.add(BadNets.name, BadNets)
