"""Random crop, mirror image and rotation of a whole batch at once, on its device; each image with draws of its own,
unless they are to be shared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Shared = Literal["nothing", "coins", "all"]
Fill = Literal["black", "mean"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a training batch is varied.

    Attributes:
        padding: zero pixels around an image before a random crop of its own size; 0 is no crop.
        crop_share: of the images that are cropped.
        degrees: images are rotated by up to this angle; 0 is none.
        rotate_share: of the images that are rotated.
        shared: "nothing": every image is varied by itself; "coins": one coin a batch says whether its images are
            cropped, and one whether they are rotated; "all": they are cropped, rotated and mirrored alike, too.
        fill: what comes in from outside: "black", or the data set's "mean" colour.
        flip: whether half of the images are mirrored, if the data set allows it.
    """

    padding: int = 4
    crop_share: float = 1.0
    degrees: float = 0.0
    rotate_share: float = 0.0
    shared: Shared = "nothing"
    fill: Fill = "black"
    flip: bool = True


def augment(
    images: Tensor,
    *,
    padding: int,
    flip: bool,
    generator: torch.Generator,
    crop_share: float = 1.0,
    shared: Shared = "nothing",
) -> Tensor:
    """Crop images at random out of their zero-padded selves, and mirror half of them.

    Args:
        images: (N, C, H, W), any dtype.
        padding: pixels of zeros on each side; 0 is no crop.
        flip: whether to mirror with probability one half.
        generator: on the CPU; draws two offsets and one coin an image.
        crop_share: probability that an image is cropped.
        shared: "coins": one coin says whether all images are cropped; "all": they are cropped and mirrored alike, too.

    Returns:
        (N, C, H, W), same dtype and device.
    """
    n, channels, height, width = images.shape
    device = images.device
    rows = torch.arange(height).expand(n, height)
    columns = torch.arange(width).expand(n, width)
    draws, coins = (1 if shared == "all" else n), (n if shared == "nothing" else 1)
    if flip:
        mirrored = torch.rand(draws, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    if padding:
        offsets = torch.randint(0, 2 * padding + 1, (2, draws, 1), generator=generator)
        if crop_share < 1:
            whole = torch.rand(coins, 1, generator=generator) >= crop_share
            offsets = torch.where(whole, padding, offsets)
        rows, columns = rows + offsets[0], columns + offsets[1]
        images = F.pad(images, (padding,) * 4)
    # One gather from the flattened padded images: index (n, h, w) -> row * padded width + column.
    index = (rows[:, :, None] * images.shape[-1] + columns[:, None, :]).view(n, 1, -1)
    flat = images.flatten(2).gather(2, index.expand(n, channels, -1).to(device))
    return flat.view(n, channels, height, width)


def rotate(
    images: Tensor, *, degrees: float, share: float, generator: torch.Generator, shared: Shared = "nothing"
) -> Tensor:
    """Turn images by random angles around their centres, bilinear, zeros from outside.

    Args:
        images: (N, C, H, W) float, H = W.
        degrees: angles are uniform in [-degrees, degrees].
        share: probability that an image is turned.
        generator: on the CPU; draws one angle and one coin an image.
        shared: "coins": one coin says whether all images are turned; "all": by the same angle, too.
    """
    n = len(images)
    draws, coins = (1 if shared == "all" else n), (n if shared == "nothing" else 1)
    angles = ((torch.rand(draws, generator=generator) * 2 - 1) * math.radians(degrees)).expand(n)
    turned = (torch.rand(coins, generator=generator) < share).expand(n)
    cosine, sine = angles[turned].cos(), angles[turned].sin()
    zero = torch.zeros_like(sine)
    matrices = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3).to(images.device)
    chosen = turned.to(images.device)
    part = images[chosen]
    if len(part):
        grid = F.affine_grid(matrices, list(part.shape), align_corners=False)
        images = images.clone()
        images[chosen] = F.grid_sample(part, grid, align_corners=False)
    return images


def cutout(images: Tensor, *, size: int, fill: Tensor, generator: torch.Generator) -> Tensor:
    """Blacken a square of `size` pixels a side in each image, at a random centre; it may hang over the edge.

    Args:
        images: (N, C, H, W); others, and a size of 0, leave everything as it is.
        fill: what black is, broadcast over the images.
        generator: on the CPU; draws a row and a column an image.
    """
    if not size or images.ndim != 4:
        return images
    n, _, height, width = images.shape
    row = torch.randint(height, (n, 1), generator=generator) - size // 2
    column = torch.randint(width, (n, 1), generator=generator) - size // 2
    rows, columns = torch.arange(height), torch.arange(width)
    inside = ((rows >= row) & (rows < row + size))[:, :, None] & ((columns >= column) & (columns < column + size))[
        :, None
    ]
    return torch.where(inside[:, None].to(images.device), fill.to(images.dtype), images)
