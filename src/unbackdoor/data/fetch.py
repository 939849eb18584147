"""Download a data set through torchvision: whole under its folder, or not at all."""

from __future__ import annotations

import contextlib
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unbackdoor.data.specs import DATASETS
from unbackdoor.errors import DataError

_TINY_IMAGENET = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")
#: A server that says nothing for so many seconds will say nothing more.
_PATIENCE = 30.0


def fetch(name: str, folder: Path) -> None:
    """Download a known data set.

    Args:
        name: of the data set.
        folder: where it goes; made, and must be empty if it is there.

    Raises:
        SettingError: the name is unknown.
        DataError: torchvision is missing, the folder is in use or cannot be made, or the network says no.
    """
    title = DATASETS[name].title
    try:
        import torchvision.datasets as torchvision
    except ImportError as error:
        raise DataError(
            f"downloading {title} needs torchvision, which is not installed; pip install 'unbackdoor[zoo]'"
        ) from error
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise DataError(
                f"{folder}: expected an empty folder, or {title} in a layout that can be read; nothing was downloaded; "
                "move its files away, or name another folder with --data-dir"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".part", dir=folder.parent) as place, _polite():
            _download(name, Path(place), torchvision)
            if folder.is_dir():
                folder.rmdir()
            (Path(place) / name).rename(folder)
    except DataError:
        raise
    except Exception as error:  # torchvision raises what urllib, tarfile and zipfile do, and RuntimeError
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        raise DataError(
            f"{title} could not be downloaded: {reason}; try again, or put its files into {folder} yourself"
        ) from error


def _download(name: str, place: Path, torchvision: Any) -> None:
    """Into `place`/`name`."""
    archive = torchvision.utils.download_and_extract_archive
    target = str(place / name)
    if name == "gtsrb":
        for split in ("train", "test"):
            torchvision.GTSRB(target, split, download=True)
        for leftover in Path(target).rglob("*.zip"):
            leftover.unlink()
    elif name == "tiny_imagenet":
        url, md5 = _TINY_IMAGENET
        archive(url, target, md5=md5, remove_finished=True)
    else:
        cls = {"cifar10": torchvision.CIFAR10, "cifar100": torchvision.CIFAR100}[name]
        # Not `cls(target, download=True)`, which would unpickle what came.
        archive(cls.url, target, filename=cls.filename, md5=cls.tgz_md5, remove_finished=True)


@contextlib.contextmanager
def _polite() -> Iterator[None]:
    """Nothing on stdout, which belongs to the report, and no waiting for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)
