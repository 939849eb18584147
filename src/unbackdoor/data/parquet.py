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
        DataError: a library is missing, a column is missing, or an image cannot be decoded or has another size.
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
    names = tables[0].column_names
    column = next((name for name in spec.columns if name in names), None)
    if column is None or "label" not in names:
        raise DataError(
            f"{files[0]}: expected the columns {' or '.join(spec.columns)} and label, got {', '.join(names)}"
        )
    total = sum(table.num_rows for table in tables)
    images = np.empty((total, spec.size, spec.size, 3), np.uint8)
    labels = np.concatenate([table["label"].to_numpy() for table in tables]).astype(np.int64)
    row = 0
    for table in tables:
        for cell in table[column]:
            try:
                picture = Image.open(io.BytesIO(cell["bytes"].as_py())).convert("RGB")
                pixels = np.asarray(picture)
            except Exception as error:
                raise DataError(f"{folder}: row {row} of {split} cannot be decoded: {error}") from error
            if pixels.shape != images.shape[1:]:
                raise DataError(
                    f"{folder}: row {row} of {split}: expected {spec.size}x{spec.size} pixels, "
                    f"got {pixels.shape[1]}x{pixels.shape[0]}"
                )
            images[row] = pixels
            row += 1
            if progress is not None and row % 1000 == 0:
                progress(row, total)
    return LabelledImages(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels), spec)
