"""Find a data set on disk and read it."""

from __future__ import annotations

import os
from pathlib import Path

from unbackdoor.data import cifar_batches, parquet
from unbackdoor.data.images import LabelledImages
from unbackdoor.data.specs import DATASETS
from unbackdoor.errors import DataError

ENVIRONMENT = "UNBACKDOOR_DATA"


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds data sets: `root`, else $UNBACKDOOR_DATA, else ./data."""
    return Path(root or os.environ.get(ENVIRONMENT) or "data")


def load_dataset(
    name: str, split: str, root: str | Path | None = None, *, progress: parquet.Progress | None = None
) -> LabelledImages:
    """Read one split of a data set.

    Args:
        name: a registered data set, for example "cifar10".
        split: "train" or "test".
        root: the folder that holds the data set (see `data_root`): parquet files under `root/name` or `root`,
            or torchvision's own folder under either.
        progress: called with (images done, images in all).

    Raises:
        SettingError: the name is unknown.
        DataError: nothing readable was found; the message lists where it was looked for.
    """
    spec = DATASETS[name]
    base = data_root(root)
    places = [base / name, base]
    stored = spec.splits[("train", "test").index(split)]
    for place in places:
        if parquet.shards(place, stored):
            return parquet.read(place, stored, spec, progress)
        for folder in (place / cifar_batches.FOLDER, place):
            if name == "cifar10" and (folder / "test_batch").is_file():
                return cifar_batches.read(folder, split, spec)
    raise DataError(
        f"{spec.title} was not found: looked for {stored}-*.parquet and torchvision's folder in "
        f"{' and '.join(str(place) for place in places)}; give its folder with --data-dir or ${ENVIRONMENT}"
    )
