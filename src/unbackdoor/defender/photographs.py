"""Crops of the photographs that ship with the package: surrogates with natural statistics that no network has made.

One photograph, cut into many crops, is enough to teach a network what another one knows (Asano & Saeed, "Extrapolating
from a single image to a thousand classes using distillation", ICLR 2023). So crops also say what an edit does to a
network. They have nothing to do with the data that it was trained on. Who took them, and under which licence, is in
pictures/README.md.
"""

from __future__ import annotations

import functools
import math
from importlib import resources

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unbackdoor.defender.on_pixels import CHUNK, OnPixels
from unbackdoor.inputs import InputSpec

#: The smallest crop, as a share of the largest that a photograph holds.
SMALLEST = 0.1
#: Contrast and brightness are multiplied by a number between these.
LIGHT = (0.6, 1.4)


@functools.cache
def _pictures() -> tuple[Tensor, ...]:
    """(3, H, W) uint8 each, in the order of their names."""
    from PIL import Image

    folder = resources.files(__package__).joinpath("pictures")
    found = []
    for file in sorted(folder.iterdir(), key=lambda one: one.name):
        if file.name.endswith(".jpg"):
            with file.open("rb") as stream, Image.open(stream) as picture:
                found.append(torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous())
    return tuple(found)


def photographs(count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
    """(count, C, H, W) crops in [0, 1].

    Each is a random part of a random photograph, between `SMALLEST` and all of what has the network's proportions, its
    size uniform in the logarithm; mirrored by a coin, in other light. A network of one channel is given grey ones, and
    of another number than three random mixtures of the colours.

    Args:
        count: of images.
        spec: what the network takes.
        generator: of everything.
    """
    channels, height, width = spec.shape
    found = torch.empty(count, channels, height, width)
    for place in range(count):
        picture = _pictures()[int(torch.randint(len(_pictures()), (), generator=generator))]
        size, up, left, mirrored, contrast, light = torch.rand(6, generator=generator).tolist()
        largest = min(picture.shape[1] / height, picture.shape[2] / width)
        scale = largest * SMALLEST ** (1 - size)
        rows, columns = (max(1, math.floor(scale * side)) for side in (height, width))
        top, start = int(up * (picture.shape[1] - rows)), int(left * (picture.shape[2] - columns))
        part = picture[None, :, top : top + rows, start : start + columns].float() / 255
        part = F.interpolate(part, (height, width), mode="bilinear", align_corners=False, antialias=True)[0]
        part = part.flip(2) if mirrored < 0.5 else part
        mean = part.mean()
        part = ((part - mean) * _between(contrast) + mean * _between(light)).clamp(0, 1)
        found[place] = _coloured(part, channels, generator)
    return found


def answered_with(shown: OnPixels, label: int, among: int, generator: torch.Generator) -> Tensor:
    """(K, C, H, W) crops in [0, 1] that a network answers with a class; K may be 0.

    Args:
        shown: the network.
        label: the class.
        among: so many crops.
        generator: of the crops.
    """
    found = [torch.empty(0, *shown.spec.shape)]
    for done in range(0, among, CHUNK):  # all at once would fill the memory where images are large
        crops = photographs(min(CHUNK, among - done), shown.spec, generator)
        found.append(crops[shown.logits(crops).argmax(1) == label])
    return torch.cat(found)


def _between(share: float) -> float:
    low, high = LIGHT
    return low + share * (high - low)


def _coloured(image: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """(3, H, W) -> (channels, H, W)."""
    if channels == 3:
        return image
    if channels == 1:
        return image.mean(0, keepdim=True)
    mixing = torch.rand(channels, 3, generator=generator)
    return torch.einsum("ci,ihw->chw", mixing / mixing.sum(1, keepdim=True), image)
