"""The layout of torchvision's ImageFolder: `train/class/*.png`, `test/class/*.png`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch

from unbackdoor.data.decode import decode
from unbackdoor.data.images import LabelledImages
from unbackdoor.data.source import Progress, Source
from unbackdoor.data.specs import DatasetSpec
from unbackdoor.errors import DataError

LAYOUT = "image folder"
SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def find(folder: Path, split: str, spec: DatasetSpec) -> Source | None:
    """The images of one split, class by class in label order, and in the alphabet's within a class.

    Raises:
        DataError: a folder is called like no class, or there are no images.
    """
    return find_split(folder / spec.stored_split(split), spec)


def find_split(place: Path, spec: DatasetSpec) -> Source | None:
    """The same, of the folder that holds the classes' folders."""
    names = class_folders(place)
    if not names:
        return None
    labels = {name: label for label, name in enumerate(spec.classes)}
    unknown = [name for name in names if name not in labels]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise DataError(
            f"{place / unknown[0]}{more}: {spec.title} has no such class; its {spec.num_classes} classes are "
            f"{', '.join(spec.classes[:3])}{', ...' if spec.num_classes > 3 else ''}"
        )
    pairs = [(file, labels[name]) for name in sorted(names, key=labels.__getitem__) for file in images_in(place / name)]
    return source_of(LAYOUT, place, pairs, spec)


def class_folders(place: Path) -> list[str]:
    """The names of a folder's sub-folders in the alphabet's order, hidden ones left out; none if it is no folder."""
    if not place.is_dir():
        return []
    with os.scandir(place) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def images_in(place: Path) -> list[Path]:
    """The image files under a folder, told by their suffix, in the order of their names."""
    found = []
    for folder, folders, files in os.walk(place):
        folders.sort()
        found += [Path(folder, name) for name in sorted(files) if name.lower().endswith(SUFFIXES)]
    return found


def source_of(
    layout: str, place: Path, pairs: list[tuple[Path, int]], spec: DatasetSpec, *, beside: tuple[Path, ...] = ()
) -> Source:
    """A split of single image files.

    Args:
        pairs: image file and label.
        beside: other files that were read to find the labels.

    Raises:
        DataError: there are none.
    """
    if not pairs:
        raise DataError(f"{place}: expected images ({', '.join('*' + suffix for suffix in SUFFIXES)}), found none")
    return Source(layout, place, (*(file for file, _ in pairs), *beside), partial(_read, pairs, spec))


def _read(pairs: list[tuple[Path, int]], spec: DatasetSpec, progress: Progress | None) -> LabelledImages:
    labels = torch.tensor([label for _, label in pairs], dtype=torch.int64)
    return decode(((str(file), file) for file, _ in pairs), labels, spec, progress)
