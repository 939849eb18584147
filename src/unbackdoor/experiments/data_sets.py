"""The data sets of a grid: loaded once per process, and compared with those that a store was started with."""

from __future__ import annotations

import functools
import hashlib

from unbackdoor.data import LabelledImages, load_dataset
from unbackdoor.experiments.grid import Grid
from unbackdoor.experiments.store import Store


def check_data(grid: Grid, store: Store, data_dir: str | None) -> dict[str, str]:
    """Check that the grid's data sets are those that the store was started with; returns their digests.

    Raises:
        DataError: a data set was not found, or differs from the store's.
    """
    for name in grid.data_sets:
        store.check_data(name, data_digest(name, data_dir))
    return store.digests()


@functools.cache
def load(data: str, split: str, data_dir: str | None) -> LabelledImages:
    """One split of a data set, cached."""
    return load_dataset(data, split, data_dir)


@functools.cache
def data_digest(data: str, data_dir: str | None) -> str:
    """SHA-256 of both splits' labels and images."""
    digest = hashlib.sha256()
    for split in ("train", "test"):
        images = load(data, split, data_dir)
        for tensor in (images.labels, images.images):
            digest.update(tensor.contiguous().cpu().numpy().data)
    return digest.hexdigest()
