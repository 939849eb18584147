"""Find a data set on disk and read it."""

from __future__ import annotations

import os
from pathlib import Path

from unbackdoor.data import cache, cifar_batches, gtsrb_folder, image_folder, own, parquet, tiny_imagenet_folder
from unbackdoor.data.fetch import fetch
from unbackdoor.data.images import LabelledImages
from unbackdoor.data.source import Progress, Source
from unbackdoor.data.specs import DATASETS, DatasetSpec
from unbackdoor.errors import DataError, SettingError

ENVIRONMENT = "UNBACKDOOR_DATA"

#: Each looks for its own layout of a known data set; the first that finds it reads it.
FINDERS: tuple[own.Finder, ...] = (
    parquet.find,
    cifar_batches.find,
    gtsrb_folder.find,
    tiny_imagenet_folder.find,
    image_folder.find,
)


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds data sets: `root`, else $UNBACKDOOR_DATA, else ./data."""
    return Path(root or os.environ.get(ENVIRONMENT) or "data")


def dataset_spec(name: str) -> DatasetSpec:
    """What is known of a data set before its images are read.

    Args:
        name: a known name, a data.toml (or data.toml:NAME), or a folder of images.

    Raises:
        SettingError: the name is unknown, or the data.toml is wrong.
        DataError: the folder holds no images.
    """
    if name not in DATASETS and own.is_own(name):
        return own.resolve(name).spec
    try:
        return DATASETS[name]
    except SettingError as error:
        raise SettingError(f"{error}; or give a folder of images, or a data.toml") from error


def load_dataset(
    name: str,
    split: str,
    root: str | Path | None = None,
    *,
    progress: Progress | None = None,
    download: bool = False,
) -> LabelledImages:
    """Read one split of a data set; decoded once, and mapped from the cache from then on (see `cache`).

    Args:
        name: a known data set, for example "cifar10"; a data.toml (or data.toml:NAME); or a folder of images.
        split: "train" or "test".
        root: the folder that holds known data sets (see `data_root`): under `root/name` or `root`, parquet files,
            torchvision's own folder, or class folders.
        progress: called with (images done, images in all) while images are decoded.
        download: whether to fetch a known data set that is not there, into `root/name`.

    Raises:
        SettingError: the name or the split is unknown.
        DataError: nothing readable was found; the message lists where it was looked for.
    """
    if name not in DATASETS and own.is_own(name):
        found = own.resolve(name)
        source = found.finder(found.folder, split, found.spec)
        if source is None:
            stored = found.spec.stored_split(split)
            raise DataError(f"{found.spec.title}: expected its {split} images in {found.folder / stored}, found none")
        return cache.read_through(source, split, found.spec, progress)
    spec, base = dataset_spec(name), data_root(root)
    source = _find(base, split, spec)
    if source is None and download:
        fetch(name, base / name)
        source = _find(base, split, spec)
    if source is None:
        raise DataError(
            f"{spec.title} was not found: looked for {spec.stored_split(split)}-*.parquet, torchvision's folder and "
            f"class folders in {base / name} and {base}; give its folder with --data-dir or ${ENVIRONMENT}, or "
            "fetch it with --download"
        )
    return cache.read_through(source, split, spec, progress)


def _find(base: Path, split: str, spec: DatasetSpec) -> Source | None:
    """A known data set in its own folder under `base`, or in `base` itself."""
    for place in (base / spec.name, base):
        for find in FINDERS:
            source = find(place, split, spec)
            if source is not None:
                return source
    return None
