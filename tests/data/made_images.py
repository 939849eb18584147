"""Small images, made here."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, width: int = 32, height: int | None = None) -> np.ndarray:
    """(height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height or width, width, 3), np.uint8)


def encoded(array: np.ndarray, form: str = "PNG") -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, form)
    return stream.getvalue()


def write(path: Path, array: np.ndarray) -> None:
    """An image file, its format told by its suffix, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
