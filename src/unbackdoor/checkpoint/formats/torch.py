"""PyTorch's own files (.pt, .pth), opened with `weights_only=True`: nothing in them is ever called."""

from __future__ import annotations

import mmap
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from unbackdoor.atomic import atomic_write
from unbackdoor.checkpoint import foreign
from unbackdoor.checkpoint.checkpoint import Checkpoint, Contents, entries_around, follow
from unbackdoor.checkpoint.format import FORMATS
from unbackdoor.checkpoint.formats.backdoorbench import data_named, network_part
from unbackdoor.checkpoint.places import describe, replaced, state_dicts
from unbackdoor.checkpoint.stand_ins import is_stand_in, read_around_objects, without_stand_ins
from unbackdoor.errors import CheckpointError, first_line

#: Names in the pickle of any plain state dict, which messages leave out; what is allowed, `torch.load` decides.
_PLAIN = re.compile(r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\.(\w*Storage|Size|device|\w*\d+)")

_NUMPY = re.compile(r"_codecs\.encode|(numpy|ndarray)\..*")

#: Never how to open the file by other means, since that would run its code.
_ASK_AUTHOR = "ask its author for a file with model.state_dict() only"

#: Functions that may allocate any amount of memory, spelled as a pickle names them.
_ALLOCATORS = (b"\nbytearray\n", b"\n_rebuild_device_tensor_from_")

#: MS-DOS's mark of a folder among a zip entry's attributes; torch's reader returns memory it never filled for one.
_FOLDER = 0x10


def read(path: Path) -> Contents:
    """Read a file.

    Raises:
        CheckpointError: it is damaged, is another kind of file, holds no state dict, or pickled objects in one.
    """
    _check_archive(path)
    _check_memory(path)
    content, objects = _content(path)
    network, data = network_part(content), data_named(content)
    passed_over = () if network is None else tuple(str(name) for name in content if name not in network)
    content = content if network is None else network
    places = state_dicts(content)
    if not places and objects:
        raise CheckpointError(_refusal(path, objects))
    if not places:
        raise CheckpointError(
            f"{path}: expected a state dict (names and tensors), at the top or up to three levels down, "
            f"got {describe(content)}"
        )
    if objects:
        for place in places.values():
            _check_whole(path, follow(content, place))
        try:
            content, taken = without_stand_ins(content)
        except RecursionError as error:
            raise CheckpointError(f"{path}: refused: nested too deeply") from error
        passed_over = (*passed_over, *taken)
    return Contents(path, "torch", content, places, ordered=True, passed_over=passed_over, objects=objects, data=data)


def _check_whole(path: Path, state: Mapping[str, Any]) -> None:
    """Refuse a state dict with an object in place of a tensor, which is known by the dot in its name."""
    for name, value in state.items():
        if is_stand_in(value) and "." in name and not name.endswith("_extra_state"):
            raise CheckpointError(f"{path}: refused: {name!r} is a pickled object, not a tensor; {_ASK_AUTHOR}")


def _content(path: Path) -> tuple[Any, tuple[str, ...]]:
    """A file's content, with stand-ins for pickled objects, and the names of these objects."""
    try:
        # From a stream, because torch.load trusts a path's suffix.
        with path.open("rb") as stream, warnings.catch_warnings(action="ignore"):
            return torch.load(stream, map_location="cpu", weights_only=True), ()
    except Exception as error:
        calls = tuple(named_callables(path))
        if calls:
            content = read_around_objects(path, calls)
            if content is None and all(_NUMPY.fullmatch(name) for name in calls) and not zipfile.is_zipfile(path):
                raise CheckpointError(
                    f"{path}: refused: a pickle of NumPy arrays that torch.save did not write; {_ASK_AUTHOR}"
                ) from error
            if content is None:
                raise CheckpointError(_refusal(path, calls)) from error
            return content, calls
        what = "its pickle is damaged" if isinstance(error, pickle.UnpicklingError | LookupError) else first_line(error)
        raise CheckpointError(f"{path}: not a readable PyTorch file: {what}") from error


def _refusal(path: Path, names: Sequence[str]) -> str:
    some = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return (
        f"{path}: refused: it holds pickled objects besides tensors ({some}), and opening it would run their code; "
        f"{_ASK_AUTHOR}"
    )


def save(path: Path, content: Any, *, overwrite: bool) -> None:
    """Write a file, completely or not at all."""
    with atomic_write(path, overwrite=overwrite) as stream:
        torch.save(content, stream)


def named_callables(path: Path) -> list[str]:
    """Every class or function that the file's pickles name, except those of tensors; none is called.

    Returns:
        Sorted names, for example ["builtins.exec"]; of a damaged file, those that can be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names: set[str] = set()
            for entry in archive.namelist():
                if entry.endswith(".pkl"):
                    with archive.open(entry) as stream:
                        names |= set(_globals(stream))  # type: ignore[arg-type]
    except (zipfile.BadZipFile, NotImplementedError):
        with path.open("rb") as stream:
            names = set(_globals(stream))
    return sorted(name for name in names if not _PLAIN.fullmatch(name))


def _globals(stream: BinaryIO) -> Iterator[str]:
    """The globals in a sequence of pickles, as far as they can be read."""
    strings: list[str] = []
    try:
        while True:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    yield ".".join(strings[-2:])
                elif isinstance(argument, str):
                    strings.append(argument)
    except Exception:  # the end of the file, or of its pickles
        return


def _check_archive(path: Path) -> None:
    """Refuse what torch's reader accepts: compressed, encrypted, repeated, overlapping or damaged entries."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = {entry.filename for entry in entries}
            if any(name.endswith("/constants.pkl") for name in names):
                raise CheckpointError(f"{path}: refused: a TorchScript program, which contains code; {_ASK_AUTHOR}")
            if names and not any(name.endswith("/data.pkl") for name in names):
                raise CheckpointError(f"{path}: expected a PyTorch file, got {foreign.archive(names)}")
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                    raise CheckpointError(f"{path}: refused: its entry {entry.filename!r} is compressed or encrypted")
                if entry.is_dir() or entry.external_attr & _FOLDER:
                    raise CheckpointError(f"{path}: refused: its entry {entry.filename!r} is marked as a folder")
            if len(names) < len(entries) or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise CheckpointError(f"{path}: refused: entries of this archive overlap or are repeated")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise CheckpointError(f"{path}: not a readable PyTorch file: {first_line(error)}") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged: the checksum of its entry {damaged!r} is wrong")


def _check_memory(path: Path) -> None:
    """Refuse a pickle that calls a function which may allocate any amount of memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [archive.read(entry) for entry in archive.namelist() if entry.endswith(".pkl")]
            found = next((name for name in _ALLOCATORS for content in pickles if name in content), None)
    except (zipfile.BadZipFile, NotImplementedError):
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = next((name for name in _ALLOCATORS if content.find(name) >= 0), None)
    if found is not None:
        raise CheckpointError(
            f"{path}: refused: its pickle calls {found.decode().strip()}, which may take any amount of memory; "
            f"{_ASK_AUTHOR}"
        )


class Torch:
    """State dicts, inside dicts and lists with other plain data."""

    suffixes = (".pt", ".pth", ".bin", ".ckpt", ".tar")
    nested = True

    def recognises(self, head: bytes, path: Path) -> bool:
        """A zip archive, or a pickle."""
        del path
        return head[:2] == b"PK" or head[:1] == b"\x80"

    def read(self, path: Path) -> Contents:
        return read(path)

    def write(
        self,
        path: Path,
        state: Mapping[str, Any],
        *,
        like: Checkpoint | None,
        metadata: Mapping[str, str],
        overwrite: bool,
    ) -> None:
        del metadata
        save(path, state if like is None else replaced(like.container, like.place, state), overwrite=overwrite)

    def kept(self, like: Checkpoint) -> tuple[str, ...]:
        """Everything around the state dict."""
        return entries_around(like)

    def lost(self, like: Checkpoint) -> tuple[str, ...]:
        """Nothing."""
        del like
        return ()


FORMATS.add("torch", Torch())
