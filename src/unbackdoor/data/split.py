"""The few clean images that a defender is supposed to have: drawn once, saved, and checked when they are loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbackdoor.atomic import atomic_write
from unbackdoor.data.images import LabelledImages
from unbackdoor.errors import DataError, SettingError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Subset:
    """Images drawn from a data set, and which they are.

    Attributes:
        data: the images, in the order of `indices`; a copy.
        indices: (n,) int64, into the whole data set, in the order in which they were drawn: the first k of them are the
            draw of k images from the same seed, and no class comes first.
        digest: of the labels of the whole data set and of the images drawn; a poisoned copy has another.
        total: number of images in the whole data set.
        seed: of the draw.
        share, count: what was asked for; one of them is None.
    """

    data: LabelledImages
    indices: Tensor
    digest: str
    total: int
    seed: int
    share: float | None
    count: int | None

    def __len__(self) -> int:
        return len(self.indices)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the indices, not the images, as JSON.

        Raises:
            OutputError: the file exists, or cannot be written.
        """
        record = {
            "schema_version": SCHEMA_VERSION,
            "data": self.data.spec.name,
            "images": self.total,
            "digest": self.digest,
            "seed": self.seed,
            "share": self.share,
            "count": self.count,
            "indices": self.indices.tolist(),
        }
        with atomic_write(path, overwrite=overwrite) as stream:
            stream.write((json.dumps(record) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path, data: LabelledImages) -> Subset:
        """The images that a file of `save` names, out of the data set that they were drawn from.

        Args:
            path: the file.
            data: the same split, whole.

        Raises:
            DataError: the file is no such record, or was drawn from other data.
        """
        record = _read(Path(path))
        name, total = record["data"], record["images"]
        if (name, total) != (data.spec.name, len(data)):
            raise DataError(
                f"{path}: expected the {total} images of {name!r} that it was drawn from, got {len(data)} of "
                f"{data.spec.name!r}"
            )
        indices = torch.tensor(record["indices"], dtype=torch.int64)
        digest = _digest(data, indices)
        if digest != record["digest"]:
            raise DataError(
                f"{path}: expected the version of {name!r} with digest {record['digest'][:12]}, which it was drawn "
                f"from; got {digest[:12]}: labels or images differ, and some may be poisoned"
            )
        return cls(data[indices], indices, digest, total, record["seed"], record["share"], record["count"])


def clean_subset(data: LabelledImages, *, share: float | None = None, count: int | None = None, seed: int) -> Subset:
    """Draw images of any class, without replacement.

    Args:
        data: clean images; of the training part, so that nothing is ever chosen by test data.
        share: of all images, above 0 and up to 1: int(N * share) are drawn, as the field does.
        count: or their number.
        seed: of the draw.

    Raises:
        SettingError: both or neither of share and count are given, or they draw none or more than there are.
    """
    if (share is None) == (count is None):
        raise SettingError(f"clean subset: expected a share or a count, got share={share}, count={count}")
    if share is not None and not 0 < share <= 1:
        raise SettingError(f"clean subset: expected a share above 0 and up to 1, got {share}")
    n = int(len(data) * share) if share is not None else count
    if n is None or not 1 <= n <= len(data):
        raise SettingError(f"clean subset: expected 1 to {len(data)} images, got {n}")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    indices = order[:n].clone()
    return Subset(data[indices], indices, _digest(data, indices), len(data), seed, share, count)


def _digest(data: LabelledImages, indices: Tensor) -> str:
    digest = hashlib.sha256(data.labels.contiguous().cpu().numpy().data)
    digest.update(data.images[indices].contiguous().cpu().numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> Mapping[str, Any]:
    """A record whose entries have the right types; everything else is a DataError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected the JSON of a clean subset: {error}") from error
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        raise DataError(f"{path}: expected the JSON of a clean subset, with schema_version {SCHEMA_VERSION}")
    kinds: dict[str, tuple[type, ...]] = {
        "data": (str,),
        "images": (int,),
        "digest": (str,),
        "seed": (int,),
        "share": (float, int, type(None)),
        "count": (int, type(None)),
        "indices": (list,),
    }
    for key, kind in kinds.items():
        if key not in record or type(record[key]) not in kind:
            raise DataError(f"{path}: {key}: expected {kind[0].__name__}, got {record.get(key)!r:.60}")
    indices, total = record["indices"], record["images"]
    if not indices or not all(type(i) is int and 0 <= i < total for i in indices) or len(set(indices)) < len(indices):
        raise DataError(f"{path}: indices: expected different numbers from 0 to {total - 1}")
    return record
