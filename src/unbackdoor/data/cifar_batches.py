"""torchvision's own folders of CIFAR (`cifar-10-batches-py`, `cifar-100-python`), read without running pickled code."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unbackdoor.data.images import LabelledImages
from unbackdoor.data.source import Progress, Source
from unbackdoor.data.specs import DatasetSpec
from unbackdoor.errors import DataError

LAYOUT = "CIFAR batches"

#: Data set -> its folder, the files of each split, and the key of the labels.
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_FILES = {
    "cifar10": {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}
_LABELS = {"cifar10": b"labels", "cifar100": b"fine_labels"}
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
            raise pickle.UnpicklingError(f"it would run {module}.{name}, and only arrays are allowed")
        return super().find_class(module, name)


def find(folder: Path, split: str, spec: DatasetSpec) -> Source | None:
    """The batches of one split, in the folder or in torchvision's folder there.

    Raises:
        DataError: some of the batches are there, and one is missing.
    """
    if spec.name not in FOLDERS:
        return None
    names = _FILES[spec.name][split]
    for place in (folder / FOLDERS[spec.name], folder):
        files = tuple(place / name for name in names)
        there = [file.is_file() for file in files]
        if all(there):
            return Source(LAYOUT, place, files, partial(_read, files, spec))
        if any(there):
            raise DataError(f"{place}: expected a file {names[there.index(False)]}, which is missing; add it")
    return None


def _read(files: tuple[Path, ...], spec: DatasetSpec, _progress: Progress | None) -> LabelledImages:
    """Read one split.

    Raises:
        DataError: a file is refused, or no batch of CIFAR.
    """
    images, labels = [], []
    for file in files:
        try:
            with file.open("rb") as stream:
                batch = _ArraysOnly(stream, encoding="bytes").load()
            images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[_LABELS[spec.name]], np.int64))
        except Exception as error:
            raise DataError(f"{file}: expected a {spec.title} batch: {' '.join(str(error).split())}") from error
    if not any(map(len, labels)):
        raise DataError(f"{files[0].parent}: {' and '.join(file.name for file in files)} hold no images")
    return LabelledImages(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)), spec)
