"""torchvision's own folder of CIFAR-10 (`cifar-10-batches-py`), read without running any pickled code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unbackdoor.data.images import LabelledImages
from unbackdoor.data.specs import DatasetSpec
from unbackdoor.errors import DataError

FOLDER = "cifar-10-batches-py"
_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}")
        return super().find_class(module, name)


def read(folder: Path, split: str, spec: DatasetSpec) -> LabelledImages:
    """Read one split.

    Args:
        folder: the folder that holds `data_batch_1` and so on.
        split: "train" or "test".

    Raises:
        DataError: a file is missing, refused, or not a CIFAR-10 batch.
    """
    images, labels = [], []
    for name in _FILES[split]:
        file = folder / name
        try:
            with file.open("rb") as stream:
                batch = _ArraysOnly(stream, encoding="bytes").load()
            images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[b"labels"], np.int64))
        except FileNotFoundError as error:
            raise DataError(f"{folder}: expected a file {name}, which is missing") from error
        except Exception as error:
            raise DataError(f"{file}: not a CIFAR-10 batch: {error}") from error
    return LabelledImages(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)), spec)
