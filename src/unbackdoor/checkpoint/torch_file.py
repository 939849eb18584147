"""PyTorch's own files (.pt, .pth), opened with `weights_only=True`: nothing in them is ever called."""

from __future__ import annotations

import copy
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from unbackdoor.atomic import atomic_write
from unbackdoor.checkpoint.attack_result import network_part, read_around_objects
from unbackdoor.checkpoint.checkpoint import Checkpoint, strip_prefix
from unbackdoor.errors import CheckpointError

#: What the pickle of a plain state dict names; `torch.load` decides, this only keeps them out of a message.
_PLAIN = re.compile(r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\.(\w*Storage|Size|device|\w*\d+)")

#: MS-DOS's mark of a folder among a zip entry's attributes; torch's reader returns memory it never filled for one.
_FOLDER = 0x10


def load(path: Path, key: str | None = None) -> Checkpoint:
    """Read a file.

    Args:
        path: a file that `torch.save` wrote.
        key: which entry holds the state dict, where the file holds more than one.

    Raises:
        CheckpointError: it is damaged, holds pickled code, or holds no state dict, or several.
    """
    _check_archive(path)
    content, objects = _content(path)
    network = network_part(content)
    passed_over = () if network is None else tuple(str(name) for name in content if name not in network)
    content = content if network is None else network
    found = _state_dicts(content)
    if key is not None:
        if key not in found:
            raise CheckpointError(f"{path}: holds no state dict under {key!r}; found {_list(found)}")
    elif len(found) == 1:
        key = next(iter(found))
    elif found:
        raise CheckpointError(f"{path}: holds several state dicts: {_list(found)}; choose one with --key")
    else:
        raise CheckpointError(
            f"{path}: expected a state dict (names and tensors), at the top or one level below; "
            f"got {_describe(content)}"
        )
    for name, tensor in found[key].items():
        _check_tensor(path, name, tensor)
    names, prefix = strip_prefix(found[key])
    return Checkpoint(
        path,
        "torch",
        names,
        prefix=prefix,
        key=key or None,
        container=content,
        ordered=True,
        passed_over=passed_over,
        objects=objects,
    )


def _content(path: Path) -> tuple[Any, tuple[str, ...]]:
    """What a file holds, and the names of the pickled objects that were passed over in it."""
    try:
        # From a stream, since of a path torch.load believes the suffix.
        with path.open("rb") as stream, warnings.catch_warnings(action="ignore"):
            return torch.load(stream, map_location="cpu", weights_only=True), ()
    except Exception as error:
        calls = named_callables(path)
        if calls:
            content = read_around_objects(path, calls)
            if content is not None:
                return content, tuple(calls)
            some = ", ".join(calls[:12]) + (f" and {len(calls) - 12} more" if len(calls) > 12 else "")
            raise CheckpointError(
                f"{path}: refused: it holds pickled objects besides tensors ({some}), and opening it would run "
                "their code; in the environment it came from, save model.state_dict() instead"
            ) from error
        what = (
            "its pickle is damaged" if isinstance(error, pickle.UnpicklingError | LookupError) else _first_line(error)
        )
        raise CheckpointError(f"{path}: not a readable PyTorch file: {what}") from error


def save(path: Path, content: Any, *, overwrite: bool) -> None:
    """Write a file, whole or not at all."""
    with atomic_write(path, overwrite=overwrite) as stream:
        torch.save(content, stream)


def rebuild(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Any:
    """The file's content with other weights: same wrapper, same prefix, everything else as it was."""
    old = checkpoint.container if checkpoint.key is None else checkpoint.container[checkpoint.key]
    new = copy.copy(old)  # unlike its own copy(), keeps an OrderedDict's _metadata
    for name, tensor in tensors.items():
        new[checkpoint.prefix + name] = tensor
    if checkpoint.key is None:
        return new
    content = copy.copy(checkpoint.container)
    content[checkpoint.key] = new
    return content


def named_callables(path: Path) -> list[str]:
    """Every class or function that the file's pickles name besides those of tensors; read, not called.

    Returns:
        Sorted, for example ["builtins.exec"]; what is readable of a damaged file.
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
    """The globals of the pickles that stand one behind the other, as far as they can be read."""
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
    except Exception:  # the end of the file, or of what is a pickle in it
        return


def _check_archive(path: Path) -> None:
    """Refuse what torch's reader would take: compressed, encrypted, repeated, overlapping or damaged entries."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = {entry.filename for entry in entries}
            if any(name.endswith("/constants.pkl") for name in names):
                raise CheckpointError(
                    f"{path}: refused: a TorchScript program; in the environment it came from, "
                    "save model.state_dict() instead"
                )
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                    raise CheckpointError(f"{path}: refused: its entry {entry.filename!r} is compressed or encrypted")
                if entry.is_dir() or entry.external_attr & _FOLDER:
                    raise CheckpointError(f"{path}: refused: its entry {entry.filename!r} says that it is a folder")
            if len(names) < len(entries) or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise CheckpointError(f"{path}: refused: entries of this archive overlap or come twice")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise CheckpointError(f"{path}: not a readable PyTorch file: {_first_line(error)}") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged: the checksum of its entry {damaged!r} is wrong")


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse a tensor that has no memory of its own, or claims more elements than its memory holds."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise CheckpointError(f"{path}: {name!r}: expected a dense tensor, got {tensor.layout} on {tensor.device}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{path}: {name!r}: claims {tensor.numel()} elements, the file holds "
            f"{tensor.untyped_storage().nbytes() // tensor.element_size()}"
        )


def _state_dicts(content: Any) -> dict[str, Mapping[str, Tensor]]:
    """The state dicts in a file: the whole of it (under ""), or its entries."""
    if _is_state_dict(content):
        return {"": content}
    if not isinstance(content, Mapping):
        return {}
    return {name: value for name, value in content.items() if isinstance(name, str) and _is_state_dict(value)}


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return "a dict with the entries " + (", ".join(map(repr, list(content)[:8])) or "(none)")
    return type(content).__name__


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
