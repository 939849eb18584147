"""A user's own data set: a folder of images, or a table of a `data.toml`.

    [birds]
    folder = "birds"        # birds/train/sparrow/*.png and birds/test/sparrow/*.png, or birds/train-*.parquet
    size = 64               # pixels

`--data data.toml:birds` names the table, `--data data.toml` is enough where there is one, and `--data path/to/birds`
does without a table.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbackdoor.data import image_folder, parquet
from unbackdoor.data.decode import MOST_PIXELS, size_of
from unbackdoor.data.source import Source
from unbackdoor.data.specs import DatasetSpec
from unbackdoor.errors import DataError, SettingError
from unbackdoor.settings import build

Finder = Callable[[Path, str, DatasetSpec], Source | None]

FORMATS = ("imagefolder", "parquet")
#: What the training part and the test part may be called; the first that is there is taken.
_SPLIT_NAMES = (("train",), ("test", "val", "valid", "validation"))
_LABEL_COLUMNS = ("label", "fine_label")
_COLUMNS = ("image", "img")
_TOML = re.compile(r"(?P<file>.*\.toml)(?::(?P<table>[^:/\\]+))?", re.DOTALL)
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """A table of a data.toml; the fields are its keys.

    Attributes:
        folder: holds the images; relative to the data.toml.
        size: height and width in pixels, to which images of another size are resized; 0 takes the images' own, which
            must then all be equal.
        classes: in label order; empty: the class folders in the alphabet's order, or what the parquet files say.
        mean: per channel, of images in [0, 1], subtracted before a network sees them; empty: 0.
        std: per channel, divided by; empty: 1.
        flip: whether a mirror image keeps its label, and training may use it.
        splits: the names of the training and the test part; empty: train, and test, val, valid or validation.
        format: "imagefolder" or "parquet"; empty: whichever is there.
        channels: 3 for colour images, 1 for grey ones; files of the other kind are converted.
    """

    folder: str = ""
    size: int = 0
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    flip: bool = False
    splits: tuple[str, ...] = ()
    format: str = ""
    channels: int = 3

    def check(self, name: str) -> None:
        """SettingError if a value is outside its range."""
        if self.channels not in (1, 3):
            raise SettingError(f"{name}: channels: expected 3 (colour) or 1 (grey), got {self.channels}")
        for key, values, low in (("mean", self.mean, -math.inf), ("std", self.std, 0.0)):
            numbers = all(type(value) in (int, float) and math.isfinite(value) and value > low for value in values)
            if len(values) not in (0, self.channels) or not numbers:
                what = ("three numbers" if self.channels == 3 else "one number") + (" above 0" if low == 0 else "")
                raise SettingError(f"{name}: {key}: expected {what}, got {list(values)}")
        for key, words in (("classes", self.classes), ("splits", self.splits)):
            if not all(isinstance(word, str) and word for word in words) or len(set(words)) < len(words):
                raise SettingError(f"{name}: {key}: expected names that all differ, got {list(words)}")
        if len(self.splits) not in (0, 2):
            raise SettingError(f"{name}: splits: expected the training and the test part, got {list(self.splits)}")
        if any(not _NAME.fullmatch(split) or split in (".", "..") for split in self.splits):
            raise SettingError(f"{name}: splits: expected names without slashes, got {list(self.splits)}")
        most = math.isqrt(MOST_PIXELS)
        if not 0 <= self.size <= most:
            raise SettingError(f"{name}: size: expected a number of pixels up to {most}, got {self.size}")
        if self.format not in ("", *FORMATS):
            raise SettingError(f"{name}: format: expected {' or '.join(FORMATS)}, got {self.format!r}")


@dataclass(frozen=True)
class Found:
    """A user's data set: what it is, where it lies, and what reads it."""

    spec: DatasetSpec
    folder: Path
    finder: Finder


def is_own(text: str) -> bool:
    """Whether a word behind `--data` means a data.toml or a folder, and not a known name."""
    return bool(text) and (_TOML.fullmatch(text) is not None or "/" in text or "\\" in text or Path(text).is_dir())


def resolve(text: str) -> Found:
    """Read `data.toml`, `data.toml:NAME` or a folder's name.

    Raises:
        SettingError: the file cannot be read, has no such table, or a key or value is wrong.
        DataError: there are no images, or no classes.
    """
    match = _TOML.fullmatch(text)
    if match is None:
        folder = Path(text)
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder of images or a data.toml, found neither")
        name = re.sub(r"[^\w.-]+", "-", folder.resolve().name) or "images"
        return _describe(name, str(folder), folder, OwnData())
    file = Path(match["file"])
    name, table = _table(file, match["table"])
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    own = build(OwnData, f"{file}: {name}", values)
    own.check(f"{file}: {name}")
    if not own.folder:
        raise SettingError(f'{file}: {name}: expected a folder, for example folder = "{name}"')
    folder = file.parent / Path(own.folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"{file}: {name}: expected a folder of images; {folder} is not a folder")
    return _describe(name, f"{file}: {name}", folder, own)


def _table(file: Path, name: str | None) -> tuple[str, Mapping[str, Any]]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingError(f"{file}: no such file; expected a data.toml with a table for each data set") from error
    except (OSError, ValueError, RecursionError) as error:  # a TOMLDecodeError is a ValueError
        raise SettingError(f"{file}: cannot be read as TOML: {error}") from error
    names = [key for key, value in tables.items() if isinstance(value, dict)]
    stray = [key for key in tables if key not in names]
    if stray:
        raise SettingError(
            f"{file}: {stray[0]}: outside any table; put it under the data set it belongs to, as [birds]"
        )
    if name is None and len(names) != 1:
        raise SettingError(f"{file}: expected one table, got {', '.join(names) or 'none'}; give {file}:NAME")
    name = name or names[0]
    if name not in tables:
        raise SettingError(f"{file}: has no table {name!r}; it has {', '.join(names) or 'none'}")
    if not _NAME.fullmatch(name):
        raise SettingError(f"{file}: {name!r}: expected a name of letters, digits, '-', '_' and '.'")
    return name, tables[name]


def _describe(name: str, where: str, folder: Path, own: OwnData) -> Found:
    """Fill in what the table leaves open from what lies in the folder."""
    form, splits = _layout(where, folder, own)
    # The training part decides on the classes: a test part may lack some, and the labels of the others would shift.
    split = next(split for split in splits if _has(form, folder, split))
    if form == "imagefolder" and split != splits[0] and not own.classes:
        raise DataError(
            f"{folder / splits[0]}: expected the training part, whose folders name the classes; without it, list them "
            "in label order in a data.toml: classes = [...]"
        )
    if form == "parquet":
        classes = own.classes or parquet.find_classes(folder, split, _LABEL_COLUMNS)
    else:
        classes = own.classes or tuple(image_folder.class_folders(folder / split))
    if len(classes) < 2:
        raise DataError(f"{folder / split}: expected at least two classes, found {len(classes)}")
    spec = DatasetSpec(
        name=name,
        title=name,
        classes=classes,
        size=own.size or _size(where, form, folder, split),
        mean=tuple(map(float, own.mean)) or (0.0,) * own.channels,
        std=tuple(map(float, own.std)) or (1.0,) * own.channels,
        flip=own.flip,
        resize=own.size > 0,
        columns=_COLUMNS,
        label_columns=_LABEL_COLUMNS,
        splits=splits,
    )
    return Found(spec, folder, parquet.find if form == "parquet" else image_folder.find)


def _layout(where: str, folder: Path, own: OwnData) -> tuple[str, tuple[str, str]]:
    """The format, and the names of the two parts."""
    choices = tuple((split,) for split in own.splits) or _SPLIT_NAMES
    for form in (own.format,) if own.format else FORMATS:
        there = [next((split for split in names if _has(form, folder, split)), None) for names in choices]
        if any(there):
            train, test = (found or names[0] for found, names in zip(there, choices, strict=True))
            return form, (train, test)
    wanted = " and ".join(" or ".join(names) for names in choices)
    raise DataError(
        f"{where}: expected folders {wanted} that hold a folder for each class, or parquet files of these names; "
        f"{folder} has neither"
    )


def _has(form: str, folder: Path, split: str) -> bool:
    if form == "parquet":
        return bool(parquet.shards(folder, split))
    return bool(image_folder.class_folders(folder / split))


def _size(where: str, form: str, folder: Path, split: str) -> int:
    if form == "parquet":
        picture = parquet.first_picture(folder, split, _COLUMNS)
    else:
        names = image_folder.class_folders(folder / split)
        first = next((file for name in names for file in image_folder.images_in(folder / split / name)), None)
        if first is None:
            raise DataError(f"{folder / split}: expected images in its class folders, found none")
        picture = (str(first), first)
    width, height = size_of(*picture)
    if width != height:
        raise SettingError(
            f"{where}: expected square images, got {width}x{height}; set size in a data.toml to resize them"
        )
    return width
