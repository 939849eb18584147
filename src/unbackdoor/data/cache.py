"""Decoded images, kept: a split is decoded once, and mapped into memory from then on.

One safetensors file a (data set, split, source), in $UNBACKDOOR_CACHE, else in the system's folder for caches. Its name
carries the digest of the source: names, sizes, inodes and times of change of the files, and all that decoding depends
on. These stand in for the content, which would take as long to read as to decode. A file that is damaged is made anew;
where none can be written, images are kept in memory and a CacheWarning says so.

The mapping is private: a program that writes into the tensors changes its own copy of the pages, never the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.atomic import atomic_write
from unbackdoor.data.images import LabelledImages
from unbackdoor.data.source import Progress, Source
from unbackdoor.data.specs import DatasetSpec
from unbackdoor.errors import DataError, OutputError

ENVIRONMENT = "UNBACKDOOR_CACHE"
FORMAT = "1"

#: Images whose bytes are compared whenever a file is opened; `verify` compares all.
_SAMPLE = 64
#: Half-written files of processes that were killed are removed after this many seconds.
_ABANDONED = 24 * 3600


class CacheWarning(UserWarning):
    """Decoded images could not be kept, or the kept ones were damaged; the images that came back are right."""


def cache_folder() -> Path:
    """$UNBACKDOOR_CACHE, else `unbackdoor` in the system's folder for caches."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(base):  # the standard says to ignore such a value
            base = str(Path.home() / ".cache")
    return Path(base) / "unbackdoor"


def read_through(source: Source, split: str, spec: DatasetSpec, progress: Progress | None = None) -> LabelledImages:
    """The source's images, from the cache where they are there, else decoded and put there.

    Args:
        source: where the split lies.
        split: "train" or "test".
        spec: the data set.
        progress: as the source's own; not called where the cache has the images.

    Raises:
        DataError: the source cannot be read.
    """
    try:
        file = cache_folder() / file_name(source, split, spec)
    except RuntimeError as error:  # no home directory
        _tell(f"decoded images are not cached: {error}; set ${ENVIRONMENT} to a folder")
        return source.read(progress)
    kept = _load(file, spec)
    if kept is not None:
        return kept
    data = source.read(progress)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _sweep(file)
        _save(file, data, split)
    except (OSError, OutputError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = getattr(cause, "strerror", None) or error
        _tell(
            f"{file.parent}: cannot cache decoded images there ({reason}), so the next run decodes them again; "
            f"set ${ENVIRONMENT} to another folder"
        )
        return data
    return _load(file, spec) or data


def file_name(source: Source, split: str, spec: DatasetSpec) -> str:
    """Name, split and digest; DataError if a file of the source is gone."""
    digest = hashlib.sha256()
    settings = [FORMAT, source.layout, spec.name, split, spec.size, spec.resize, spec.classes]
    if spec.channels != 3:
        settings.append(spec.channels)
    digest.update(json.dumps(settings).encode())
    above = os.path.join(source.folder, "")  # a folder that was moved holds the same images
    for path in source.files:
        try:
            status = os.stat(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        name = str(path).removeprefix(above)
        # Times of modification survive a copy and may be set; inode and time of change tell another file of that name.
        state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        digest.update(f"{name}\0{state}\n".encode("utf-8", "surrogateescape"))
    return f"{re.sub(r'[^A-Za-z0-9._-]', '-', spec.name)}-{split}-{digest.hexdigest()[:24]}.safetensors"


def verify(file: Path) -> bool:
    """Whether a cache file is whole, to the last byte (opening one compares a sample only)."""
    try:
        tensors, about = _open(file)
    except Exception:
        return False
    return about.get("content") == _content(tensors["images"], tensors["labels"])


def _load(file: Path, spec: DatasetSpec) -> LabelledImages | None:
    """What a file holds; None if it is not there or not whole."""
    if not file.exists():
        return None
    try:
        tensors, about = _open(file)
        images, labels = tensors["images"], tensors["labels"]
        if about["sample"] != _sample(images, labels):
            raise ValueError("its images or labels changed")
        if images.shape[1:] != (spec.channels, spec.size, spec.size):
            raise ValueError(f"it holds images of shape {tuple(images.shape[1:])}")
        return LabelledImages(images, labels, spec, int(about["resized"]))
    except Exception as error:
        _tell(f"{file}: damaged ({' '.join(str(error).split())}); rebuilding it from the images")
        return None


def _open(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; an exception if the file is cut short or its header is not the one that was written."""
    from safetensors import safe_open

    with safe_open(file, "pt") as stored:
        about = dict(stored.metadata() or {})
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
    seal = about.pop("header", None)
    if tensors.keys() != {"images", "labels"} or seal != _seal(tensors, about):
        raise ValueError("its header changed")
    return tensors, about


def _save(file: Path, data: LabelledImages, split: str) -> None:
    """Write a file, whole or not at all, without a second copy of the images in memory.

    Raises:
        OSError, OutputError: it cannot be written.
    """
    tensors = {"images": data.images.contiguous(), "labels": data.labels.contiguous()}
    about = {
        "unbackdoor.cache": FORMAT,
        "data": data.spec.name,
        "split": split,
        "resized": str(data.resized),
        "sample": _sample(data.images, data.labels),
        "content": _content(data.images, data.labels),
    }
    header: dict[str, object] = {"__metadata__": {**about, "header": _seal(tensors, about)}}
    end = 0
    for name in ("labels", "images"):  # the wider type first, so that both are aligned
        start, end = end, end + tensors[name].nbytes
        dtype = "I64" if name == "labels" else "U8"
        header[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(file, overwrite=True) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.write(tensors["labels"].numpy().data)
        stream.write(tensors["images"].numpy().data)


def _seal(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Checksum of all that a header says."""
    layout = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    return hashlib.sha256(json.dumps([layout, dict(about)], sort_keys=True).encode()).hexdigest()


def _sample(images: Tensor, labels: Tensor) -> str:
    """Checksum of all labels and of some images, spread evenly."""
    rows = torch.linspace(0, len(images) - 1, min(_SAMPLE, len(images))).round().long()
    return _content(images[rows], labels)


def _content(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(labels.contiguous().numpy().data)
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()


def _sweep(file: Path) -> None:
    """Remove what processes that were killed left behind; the young ones may still be at work."""
    for part in file.parent.glob(".*.safetensors.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > _ABANDONED:
                part.unlink()


def _tell(message: str) -> None:
    warnings.warn(message, CacheWarning, stacklevel=4)
