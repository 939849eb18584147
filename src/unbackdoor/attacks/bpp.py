"""BPP (Wang et al., CVPR 2022).

Symbols:
    Q(x)   round(x / 255 (q - 1)) / (q - 1) * 255 per channel, q colours a channel                          (Eq. 3)
    dithering by Floyd and Steinberg spreads each pixel's error to its neighbours: 7/16 right, 3/16 down left,
    5/16 down, 1/16 down right                                                                              (Sec. 3.3)

Each batch holds attacked images Q(x) labelled as the target and negatives clip(x + Q(x') - x') with their own, x' being
another image of the batch: the network must ignore another image's quantisation error.

Departures:
    - Despite its title, the published code has no contrastive loss. It uses cross-entropy with the negatives, and so
      does this package.
    - In the published code x' is any training image. Here it is another image of the same batch, and never x itself:
      that negative would be a true attacked image with its original label.
    - Dithering is off by default, as in the published code.
    - The authors' configuration makes negatives of 0.2 of each batch, at a poison rate of 0.2. The default here is
      BackdoorBench's 0.1. For the authors' setting use `bpp@as_published` with a rate of 0.2.
    - By default each image is cropped and rotated independently, and the border is filled with black. The authors toss
      one coin per batch for the crop and one for the rotation. BackdoorBench makes one draw for the whole batch. Both
      fill with the mean colour. The presets of these names do the same.
    - Triggered images are rounded to 8 bits, in training and in files. The authors round neither. BackdoorBench
      truncates its files only (`bpp@backdoorbench`).
    - The success rate leaves out test images of the target class. The authors' figures include them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacks.base import ATTACKS
from unbackdoor.attacks.training_control import Mixed, PostAugmented, others, whole
from unbackdoor.papers import Paper
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class BPP(PostAugmented):
    """Reduces the number of colours."""

    name: ClassVar[str] = "bpp"
    title: ClassVar[str] = "BPP"
    paper: ClassVar[Paper] = Paper(
        authors=("Wang", "Zhai", "Ma"),
        title="BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via Image "
        "Quantization and Contrastive Adversarial Learning",
        venue="CVPR",
        year=2022,
        url="https://arxiv.org/abs/2205.13383",
    )
    colours: int = setting(  # 256 are all there are
        8, "q, colours a channel (8 by default in the authors' code; fewer are a stronger trigger)", least=2, most=255
    )
    dithering: bool = setting(False, "whether each pixel's error is spread to its neighbours")
    negative_rate: float = setting(
        0.1,
        "share of each batch that are negatives, whatever the poison rate (0.2 in the authors' configuration, 0.1 in "
        "BackdoorBench's)",
        least=0,
        most=1,
    )

    @classmethod
    def as_published(cls) -> BPP:
        """The authors' settings, for a poison rate of 0.2: as many negatives, one coin per batch."""
        return cls(negative_rate=0.2, shared="coins", fill="mean")

    @classmethod
    def backdoorbench(cls) -> BPP:
        """BackdoorBench's settings, for a rate of 0.1: one draw per batch, triggered files truncated to 8 bits."""
        return cls(shared="all", fill="mean", rounding="truncate")

    def stamp(self, images: Tensor) -> Tensor:
        """Quantise, dithered or not."""
        return self.to_8_bits(self.quantised(images)) if len(images) else images.clone()

    def quantised(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> Q(x), float."""
        return dither(images, self.colours) if self.dithering else quantise(images.float(), self.colours)

    def mix(self, images: Tensor, labels: Tensor, *, count: int, num_classes: int, generator: torch.Generator) -> Mixed:
        """Quantise the first images to the target; give the next ones another image's quantisation error."""
        cover = min(whole(self.negative_rate * len(labels)), len(labels) - count)
        attacked = slice(0, count)
        negatives = slice(count, count + cover)
        theirs = images[others(negatives, len(images), generator=generator).to(images.device)]
        trigger = self.trained_on(self.quantised(images[attacked]))
        residual = self.trained_on(self.quantised(theirs)).float() - theirs.float()
        edited, labels = images.to(trigger.dtype, copy=True), labels.clone()
        edited[attacked] = trigger
        edited[negatives] = self.trained_on(images[negatives].float() + residual)
        labels[attacked] = self.target_labels(labels[attacked], num_classes)
        return Mixed(edited, labels, count, cover)


def quantise(values: Tensor, colours: int) -> Tensor:
    """Values in 0..255 to the nearest of `colours` levels (Eq. 3)."""
    return (values / 255 * (colours - 1)).round() / (colours - 1) * 255


def dither(images: Tensor, colours: int) -> Tensor:
    """Floyd-Steinberg: (N, C, H, W) uint8 -> float32; all images and channels at once, pixel by pixel."""
    height, width = images.shape[-2:]
    # One column of margin on each side and one row below catch the errors that leave the image.
    work = torch.zeros(*images.shape[:-2], height + 1, width + 2, device=images.device)
    work[..., :height, 1 : width + 1] = images.float()
    for row in range(height):
        for column in range(1, width + 1):
            old = work[..., row, column].clone()
            new = quantise(old.clamp(0, 255), colours)
            error = old - new
            work[..., row, column] = new
            work[..., row, column + 1] += error * (7 / 16)
            work[..., row + 1, column - 1] += error * (3 / 16)
            work[..., row + 1, column] += error * (5 / 16)
            work[..., row + 1, column + 1] += error * (1 / 16)
    return work[..., :height, 1 : width + 1]


ATTACKS.add(BPP.name, BPP)
