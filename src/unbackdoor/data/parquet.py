"""The Hugging Face hub's parquet layout: one row an image, an encoded file, and its label, an integer.

The image column holds `{bytes, path}` or the bytes themselves; the schema's metadata may name the classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbackdoor.data.decode import decode
from unbackdoor.data.images import LabelledImages
from unbackdoor.data.source import Progress, Source
from unbackdoor.data.specs import DatasetSpec
from unbackdoor.errors import DataError

LAYOUT = "parquet"


def find(folder: Path, split: str, spec: DatasetSpec) -> Source | None:
    """The shards of one split, in the folder or where a clone of a hub's repository keeps them."""
    stored = spec.stored_split(split)
    for place in (folder, folder / "data", folder / "plain_text", folder / spec.name):
        files = shards(place, stored)
        if files:
            return Source(LAYOUT, place, tuple(files), partial(_read, files, stored, spec))
    return None


def shards(folder: Path, stored: str) -> list[Path]:
    """The files of one split, for example train-00000-of-00001.parquet, in order."""
    return sorted(folder.glob(f"{stored}-*.parquet")) + sorted(folder.glob(f"{stored}.parquet"))


def find_classes(folder: Path, stored: str, label_columns: tuple[str, ...]) -> tuple[str, ...]:
    """The classes that the first shard's schema names, else the numbers from 0 to the largest label.

    Raises:
        DataError: a file cannot be read, or has no such column.
    """
    files = shards(folder, stored)
    with _open(files[0]) as parquet:
        column = _column(files[0], parquet, label_columns)
        names = _class_names(parquet, column)
    if names is not None:
        return names
    labels = torch.cat([_labels(file, label_columns) for file in files])
    return tuple(str(label) for label in range(int(labels.max()) + 1)) if len(labels) else ()


def first_picture(folder: Path, stored: str, columns: tuple[str, ...]) -> tuple[str, Any]:
    """Where the first image of a split lies, and its bytes."""
    for picture in _pictures(shards(folder, stored), stored, columns):
        return picture
    raise DataError(f"{folder}: the {stored} files hold no images")


def _read(files: list[Path], stored: str, spec: DatasetSpec, progress: Progress | None) -> LabelledImages:
    """Decode one split.

    Raises:
        DataError: a library is missing, a column is missing, a label is no whole number or no class, the classes are
            not the data set's, there are no images, or one cannot be decoded or has another size.
    """
    for file in files:
        with _open(file) as parquet:
            _check_columns(file, parquet, spec)
            _check_classes(file, _class_names(parquet, _column(file, parquet, spec.label_columns)), spec)
    labels = torch.cat([_labels(file, spec.label_columns) for file in files])
    if len(labels) == 0:
        raise DataError(f"{files[0].parent}: the {stored} files hold no images")
    return decode(_pictures(files, stored, spec.columns), labels, spec, progress)


def _pictures(files: list[Path], stored: str, columns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for file in files:
        with _open(file) as parquet:
            column = _column(file, parquet, columns)
            batches = parquet.iter_batches(columns=[column], batch_size=256)
            row = 0
            while True:
                try:
                    cells = next(batches)[column].to_pylist()
                except StopIteration:
                    break
                except Exception as error:
                    raise DataError(f"{file}: cannot be read as parquet after row {row}: {_line(error)}") from error
                for cell in cells:
                    yield f"{file}: row {row} of {stored}", cell.get("bytes") if isinstance(cell, dict) else cell
                    row += 1


def _labels(file: Path, columns: tuple[str, ...]) -> Tensor:
    """(N,) int64."""
    with _open(file) as parquet:
        column = _column(file, parquet, columns)
        try:
            labels = parquet.read(columns=[column])[column].cast("int64", safe=True).to_numpy()
            if labels.dtype != np.int64:
                raise ValueError("some are missing")
        except Exception as error:
            message = f"{file}: the labels of {file.name.split('-')[0]} are not whole numbers: {_line(error)}"
            raise DataError(message) from error
    return torch.from_numpy(labels.copy())


def _open(file: Path) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"reading {file} needs pyarrow, which is not installed; pip install 'unbackdoor[data]'"
        ) from error
    try:
        return pq.ParquetFile(file)
    except Exception as error:
        raise DataError(f"{file}: cannot be read as parquet: {_line(error)}") from error


def _check_columns(file: Path, parquet: Any, spec: DatasetSpec) -> None:
    names = parquet.schema_arrow.names
    if not set(spec.columns) & set(names) or not set(spec.label_columns) & set(names):
        raise DataError(
            f"{file}: expected the columns {' or '.join(spec.columns)} and {' or '.join(spec.label_columns)}, "
            f"got {', '.join(names)}"
        )


def _column(file: Path, parquet: Any, wanted: tuple[str, ...]) -> str:
    names: list[str] = parquet.schema_arrow.names
    for name in wanted:
        if name in names:
            return name
    raise DataError(f"{file}: expected a column {' or '.join(wanted)}, got {', '.join(names)}")


def _class_names(parquet: Any, column: str) -> tuple[str, ...] | None:
    """What the hub's `ClassLabel` says of a column, where it says something."""
    try:
        about = json.loads((parquet.schema_arrow.metadata or {})[b"huggingface"])
        names = about["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _check_classes(file: Path, names: tuple[str, ...] | None, spec: DatasetSpec) -> None:
    """Other words for the classes are fine; another number of them, or another order, is another data set."""
    if names is None:
        return
    if len(names) != spec.num_classes:
        raise DataError(f"{file}: expected the {spec.num_classes} classes of {spec.title}, the file names {len(names)}")
    if set(names) == set(spec.classes) and names != spec.classes:
        row = next(i for i, name in enumerate(names) if name != spec.classes[i])
        raise DataError(
            f"{file}: expected the classes in the order of {spec.title}; label {row} is {names[row]!r} here and "
            f"{spec.classes[row]!r} there"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
