"""torchvision's own folder of GTSRB: `gtsrb/GTSRB/Training/000xx/*.ppm`, `Final_Test/Images` and `GT-final_test.csv`.

The benchmark's own archives (`GTSRB/Final_Training/Images`) are read as well.
"""

from __future__ import annotations

import csv
from pathlib import Path

from unbackdoor.data.image_folder import class_folders, images_in, source_of
from unbackdoor.data.source import Source
from unbackdoor.data.specs import GTSRB, DatasetSpec
from unbackdoor.errors import DataError

LAYOUT = "GTSRB folder"
ANSWERS = "GT-final_test.csv"


def find(folder: Path, split: str, spec: DatasetSpec) -> Source | None:
    """The images of one split; a folder's number is its label, and a table has those of the test images.

    Raises:
        DataError: a folder is called like no class, or the table is missing or damaged.
    """
    if spec.name != GTSRB.name:
        return None
    for place in (folder / "gtsrb" / "GTSRB", folder / "GTSRB", folder):
        if split == "train":
            for images in (place / "Training", place / "Final_Training" / "Images"):
                if images.is_dir():
                    return _train(images, spec)
        elif (place / "Final_Test" / "Images").is_dir():
            return _test(place, spec)
    return None


def _train(images: Path, spec: DatasetSpec) -> Source:
    pairs = []
    for name in class_folders(images):
        if not name.isdecimal() or int(name) >= spec.num_classes:
            raise DataError(f"{images / name}: expected class folders 00000 to {spec.num_classes - 1:05}")
        pairs += [(file, int(name)) for file in images_in(images / name)]
    return source_of(LAYOUT, images, pairs, spec)


def _test(place: Path, spec: DatasetSpec) -> Source:
    images = place / "Final_Test" / "Images"
    tables = [folder / ANSWERS for folder in (place.parent, place, images.parent, images)]
    table = next((file for file in tables if file.is_file()), None)
    if table is None:
        raise DataError(f"{images}: expected {ANSWERS}, which holds the labels, in {tables[0].parent} or {place}")
    pairs = []
    try:
        with table.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream, delimiter=";", skipinitialspace=True):
                name = row["Filename"]
                if Path(name).name != name:
                    raise ValueError(f"{name!r} is not a file name")
                pairs.append((images / name, int(row["ClassId"])))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{table}: expected the columns Filename and ClassId, separated by ';': {error!r}") from error
    return source_of(LAYOUT, place.parent, pairs, spec, beside=(table,))
