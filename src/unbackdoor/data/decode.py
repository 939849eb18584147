"""Encoded image files -> one uint8 tensor."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unbackdoor.data.images import LabelledImages, check_labels
from unbackdoor.data.source import Progress
from unbackdoor.data.specs import DatasetSpec
from unbackdoor.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Beyond this an image is refused before it is decoded: a small file may unfold into gigabytes.
MOST_PIXELS = 2**26


def decode(
    pictures: Iterable[tuple[str, Any]], labels: Tensor, spec: DatasetSpec, progress: Progress | None = None
) -> LabelledImages:
    """Decode a split; grey, palette and transparent images become RGB, 16 bits a pixel become the upper 8.

    Where the data set has one channel, they become grey instead: colours are weighed as pillow does (ITU-R 601).

    An image that is not `spec.size` by `spec.size` pixels is resized with pillow's bilinear filter (which averages when
    it shrinks), its sides independently, where `spec.resize` allows it.

    Args:
        pictures: where an image lies, for messages; and the path or the bytes of its file. As many as labels.
        labels: (N,) int64.
        spec: the data set.
        progress: called after every 1000 images.

    Raises:
        DataError: a label is no class, an image cannot be decoded or holds numbers of no known range, or it has another
            size and may not be resized.
    """
    check_labels(labels, spec)
    total, size = len(labels), spec.size
    images = np.empty((total, spec.channels, size, size), np.uint8)
    resized = 0
    for row, (where, content) in zip(range(total), pictures, strict=True):
        pixels, changed = _pixels(where, content, spec)
        images[row] = pixels.reshape(size, size, spec.channels).transpose(2, 0, 1)
        resized += changed
        if progress is not None and (row + 1) % 1000 == 0:
            progress(row + 1, total)
    return LabelledImages(torch.from_numpy(images), labels, spec, resized)


def size_of(where: str, content: Any) -> tuple[int, int]:
    """(width, height) of one image in pixels; DataError if it is none."""
    try:
        with _open(content) as picture:
            return picture.size
    except Exception as error:
        raise DataError(f"{where}: cannot be decoded: {_reason(error)}") from error


def _pixels(where: str, content: Any, spec: DatasetSpec) -> tuple[NDArray[np.uint8], bool]:
    """(size, size, 3), or (size, size) of a grey one, and whether it was resized."""
    from PIL.Image import Resampling

    wanted = (spec.size, spec.size)
    try:
        with _open(content) as picture:
            size = picture.size  # known before the pixels are decoded
            if size == wanted:
                return np.asarray(_converted(picture, spec)), False
            if spec.resize and size[0] * size[1] <= MOST_PIXELS:
                return np.asarray(_converted(picture, spec).resize(wanted, Resampling.BILINEAR)), True
    except Exception as error:
        raise DataError(f"{where}: cannot be decoded: {_reason(error)}") from error
    most = f" (or at most {MOST_PIXELS:,} in all)" if spec.resize else ""
    raise DataError(f"{where}: expected {spec.size}x{spec.size} pixels{most}, got {size[0]}x{size[1]}")


def _converted(picture: Image, spec: DatasetSpec) -> Image:
    """In RGB, or grey. What pillow's own conversion would cut off at 255 is scaled, or refused."""
    from PIL import Image

    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise ValueError(f"its pixel range is unknown (pillow mode {picture.mode}); convert it to 8 bits per channel")
    elif picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # the same colours, without pillow's warning
    return picture.convert("L" if spec.channels == 1 else "RGB")


def _open(content: Any) -> Image:
    from PIL import Image

    if not isinstance(content, bytes | Path):
        raise ValueError(f"expected the bytes of an image, got {type(content).__name__}")
    return Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # its text is an address in memory
        return "it is not an image, or its format is unknown"
    return " ".join(str(error).split()) or type(error).__name__
