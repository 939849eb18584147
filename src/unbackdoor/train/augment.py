"""Random crop and mirror image of a whole batch at once, each image with draws of its own, on its device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, *, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Crop each image at random out of its zero-padded self, and mirror half of them.

    Args:
        images: (N, C, H, W), any dtype.
        padding: pixels of zeros on each side; 0 is no crop.
        flip: whether to mirror with probability one half.
        generator: on the CPU; draws two offsets and one coin an image.

    Returns:
        (N, C, H, W), same dtype and device.
    """
    n, channels, height, width = images.shape
    device = images.device
    rows = torch.arange(height).expand(n, height)
    columns = torch.arange(width).expand(n, width)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    if padding:
        offsets = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
        rows, columns = rows + offsets[0], columns + offsets[1]
        images = F.pad(images, (padding,) * 4)
    # One gather from the flattened padded images: index (n, h, w) -> row * padded width + column.
    index = (rows[:, :, None] * images.shape[-1] + columns[:, None, :]).view(n, 1, -1)
    flat = images.flatten(2).gather(2, index.expand(n, channels, -1).to(device))
    return flat.view(n, channels, height, width)
