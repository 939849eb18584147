"""The Hugging Face hub's parquet layout: one row an image, `image.bytes` an encoded file, `label` an integer."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from unbackdoor.data.images import LabelledImages
from unbackdoor.data.specs import DatasetSpec
from unbackdoor.errors import DataError

Progress = Callable[[int, int], None]


def shards(folder: Path, split: str) -> list[Path]:
    """The files of one split, for example train-00000-of-00001.parquet, in order."""
    return sorted(folder.glob(f"{split}-*.parquet")) + sorted(folder.glob(f"{split}.parquet"))


def read(folder: Path, split: str, spec: DatasetSpec, progress: Progress | None = None) -> LabelledImages:
    """Decode one split.

    Args:
        folder: holds the files that `shards` finds.
        split: the files' first word.
        progress: called with (images done, images in all).

    Raises:
        DataError: a library is missing, a column is missing, a label is no whole number, there are no images, or one
            cannot be decoded or has another size.
    """
    try:
        import pyarrow.parquet as pq
        from PIL import Image
    except ImportError as error:
        raise DataError(f"reading {folder} needs pyarrow and pillow; pip install 'unbackdoor[data]'") from error
    files = shards(folder, split)
    try:
        tables = [pq.read_table(file) for file in files]
    except Exception as error:
        raise DataError(f"{folder}: a {split} file is not readable parquet: {error}") from error
    for file, table in zip(files, tables, strict=True):
        if "label" not in table.column_names or not set(spec.columns) & set(table.column_names):
            raise DataError(
                f"{file}: expected the columns {' or '.join(spec.columns)} and label, "
                f"got {', '.join(table.column_names)}"
            )
    try:
        labels = np.concatenate([table["label"].cast("int64", safe=True).to_numpy() for table in tables])
        if labels.dtype != np.int64:
            raise ValueError("some are missing")
    except Exception as error:
        raise DataError(f"{folder}: the labels of {split} are not whole numbers: {error}") from error
    total = sum(table.num_rows for table in tables)
    if total == 0:
        raise DataError(f"{folder}: the {split} files hold no images")
    images = np.empty((total, spec.size, spec.size, 3), np.uint8)
    row = 0
    for table in tables:
        column = next(name for name in spec.columns if name in table.column_names)
        for cell in table[column]:
            try:
                picture = Image.open(io.BytesIO(cell["bytes"].as_py()))
                size = picture.size  # known before the pixels are decoded
                pixels = np.asarray(picture.convert("RGB")) if size == (spec.size, spec.size) else None
            except Exception as error:
                raise DataError(f"{folder}: row {row} of {split} cannot be decoded: {error}") from error
            if pixels is None:
                raise DataError(
                    f"{folder}: row {row} of {split}: expected {spec.size}x{spec.size} pixels, got {size[0]}x{size[1]}"
                )
            images[row] = pixels
            row += 1
            if progress is not None and row % 1000 == 0:
                progress(row, total)
    return LabelledImages(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels), spec)
