"""Blended (Chen et al., arXiv 2017).

x' = (1 - alpha) x + alpha t over the whole image, in training and at test time.

Departures:
    - The paper blends with a cartoon or with random noise. Here t is noise drawn from the seed, each pixel uniform in
      0..255, and is saved with the attack.
    - Triggered images are rounded to 8 bits. BackdoorBench, whose t is a cartoon, truncates them
      (`blended@backdoorbench`, with noise).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn

from unbackdoor.attacks.base import ATTACKS, Progress
from unbackdoor.attacks.poisoning import DataPoisoning
from unbackdoor.papers import Paper
from unbackdoor.settings import setting

if TYPE_CHECKING:
    from unbackdoor.data import LabelledImages


@dataclass(frozen=True, kw_only=True)
class Blended(DataPoisoning):
    """Blend the whole image with a fixed one."""

    name: ClassVar[str] = "blended"
    title: ClassVar[str] = "Blended"
    paper: ClassVar[Paper] = Paper(
        authors=("Chen", "Liu", "Li", "Lu", "Song"),
        title="Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning",
        venue="arXiv",
        year=2017,
        url="https://arxiv.org/abs/1712.05526",
    )
    alpha: float = setting(0.2, "weight of the trigger image (0.2 in the field's benchmarks)", above=0, most=1)

    @classmethod
    def backdoorbench(cls) -> Blended:
        """BackdoorBench's alpha, triggered files truncated to 8 bits."""
        return cls(rounding="truncate")

    def prepare(
        self,
        data: LabelledImages,
        *,
        seed: int,
        classifier: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Draw the trigger image."""
        del classifier, progress
        generator = torch.Generator().manual_seed(seed)
        shape = data.images.shape[1:]
        return self.with_tensors(pattern=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))

    def stamp(self, images: Tensor) -> Tensor:
        """Blend, and round to 8 bits."""
        pattern = self.whole_image("pattern", images).float()
        return self.to_8_bits((1 - self.alpha) * images.float() + self.alpha * pattern)


ATTACKS.add(Blended.name, Blended)
