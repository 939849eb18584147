"""The folder in Tiny ImageNet's own archive: `train/<id>/images/*.JPEG`, `val/images` and `val/val_annotations.txt`.

A `val` whose images somebody has sorted into class folders is read as well.
"""

from __future__ import annotations

from pathlib import Path

from unbackdoor.data.image_folder import find_split, source_of
from unbackdoor.data.source import Source
from unbackdoor.data.specs import TINY_IMAGENET, DatasetSpec
from unbackdoor.errors import DataError

LAYOUT = "Tiny ImageNet folder"
FOLDER = "tiny-imagenet-200"
ANSWERS = "val_annotations.txt"


def find(folder: Path, split: str, spec: DatasetSpec) -> Source | None:
    """The images of one split.

    Raises:
        DataError: a class is unknown, or the table of the validation images is damaged.
    """
    if spec.name != TINY_IMAGENET.name:
        return None
    for place in (folder / FOLDER, folder):
        if split == "train" and (place / "train").is_dir():
            return find_split(place / "train", spec)
        if split == "test" and (place / "val" / ANSWERS).is_file():
            return _val(place / "val", spec)
        if split == "test" and (place / "val").is_dir():
            return find_split(place / "val", spec)
    return None


def _val(place: Path, spec: DatasetSpec) -> Source:
    table = place / ANSWERS
    labels = {name: label for label, name in enumerate(spec.classes)}
    pairs = []
    try:
        for line in table.read_text(encoding="utf-8").splitlines():
            name, identity, *_ = line.split("\t")
            if Path(name).name != name:
                raise ValueError(f"{name!r} is not a file name")
            pairs.append((place / "images" / name, labels[identity]))
    except KeyError as error:
        raise DataError(f"{table}: {spec.title} has no class {error}") from error
    except (OSError, ValueError) as error:
        message = f"{table}: expected a file name and a class id on each line, separated by a tab: {error}"
        raise DataError(message) from error
    return source_of(LAYOUT, place, pairs, spec, beside=(table,))
