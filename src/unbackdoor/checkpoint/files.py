"""The verbs: `read` or `load` a file, `save` one; its content tells the format, and on writing its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbackdoor.atomic import check_target
from unbackdoor.checkpoint import foreign, safetensors_file, torch_file
from unbackdoor.checkpoint.checkpoint import Checkpoint, Contents
from unbackdoor.checkpoint.places import choose, replaced
from unbackdoor.errors import CheckpointError, OutputError

_SUFFIXES = {
    ".safetensors": "safetensors",
    ".pt": "torch",
    ".pth": "torch",
    ".bin": "torch",
    ".ckpt": "torch",
    ".tar": "torch",
}


def load(path: str | Path, *, key: str | None = None) -> Checkpoint:
    """Read the one network in a model file, by names alone; no code in it runs.

    Args:
        path: a safetensors file, or a state dict that `torch.save` wrote (bare, or in dicts and lists).
        key: which part of it to read, where there are several: "state_dict_ema", "model.state_dict".

    Raises:
        CheckpointError: it is missing, damaged, refused, or holds no state dict.
    """
    return choose(read(path), key)


def read(path: str | Path) -> Contents:
    """Read a model file, without settling which of its tensors are the network's; no code in it runs.

    Raises:
        CheckpointError: it is missing, damaged, refused, or holds no state dict.
    """
    path = Path(path)
    try:
        if not path.is_file():
            what = foreign.folder(path) if path.is_dir() else "a device or a pipe" if path.exists() else None
            raise CheckpointError(
                f"{path}: expected a model file, this {'does not exist' if what is None else f'is {what}'}"
            )
        with path.open("rb") as stream:
            head = stream.read(foreign.HEAD)
        if not head:
            raise CheckpointError(f"{path}: the file is empty")
        part = foreign.shard(path)
        if part is not None:
            raise CheckpointError(f"{path}: {part}")
        # safetensors first: the length in front of its header may begin as any other file does.
        plausible = head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= safetensors_file.MAX_HEADER
        kind = None if plausible else foreign.name(head, path)
        if kind is not None:
            raise CheckpointError(f"{path}: neither a safetensors file nor a PyTorch one: {kind}")
        if head[8:9] == b"{":
            contents = safetensors_file.read(path)
        elif head[:2] == b"PK" or head[:1] == b"\x80":
            contents = torch_file.read(path)
        else:
            raise CheckpointError(
                f"{path}: neither a safetensors file nor a PyTorch one (its first bytes are {head[:9]!r})"
            )
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if contents.format == "safetensors" and not contents.content:
        raise CheckpointError(f"{path}: holds no tensors")
    return contents


def save(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    like: Checkpoint | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model file, whole or not at all; the suffix decides the format.

    Args:
        path: ends in .safetensors, or in .pt, .pth, .bin, .ckpt or .tar.
        tensors: name -> tensor.
        like: the file that they came from: every name is written as it was there, other tensors of that state dict
            are kept, and from torch to torch all other plain data (optimiser, epoch).
        metadata: strings for a safetensors file, added to those of `like`.
        overwrite: whether a file of that name may be replaced.

    Raises:
        OutputError: the suffix is unknown, the file exists, or it cannot be written.
    """
    path = Path(path)
    kind = check_output(path, overwrite=overwrite)
    state = dict(tensors) if like is None else like.in_file(tensors)
    if kind == "safetensors":
        strings = {**(like.metadata if like else {}), **(metadata or {})}
        safetensors_file.save(path, _tensors(state), metadata=strings, overwrite=overwrite)
    elif like is not None and like.format == "torch":
        torch_file.save(path, replaced(like.container, like.place, state), overwrite=overwrite)
    else:
        torch_file.save(path, state, overwrite=overwrite)


def holds(path: str | Path, tensors: Mapping[str, Tensor], like: Checkpoint) -> bool:
    """Whether a file that `save` wrote has these tensors, and everything else of that state dict, bit by bit.

    Raises:
        CheckpointError: it cannot be read.
    """
    contents = read(path)
    place = like.place if contents.format == like.format == "torch" else ()
    meant, written = _tensors(like.in_file(tensors)), _tensors(contents.at(place))
    return meant.keys() == written.keys() and all(_same(written[name], meant[name]) for name in meant)


def lost(path: str | Path, like: Checkpoint) -> tuple[str, ...]:
    """What a torch file held besides tensors in its state dict, and an output of that name does not."""
    if like.format != "torch" or _SUFFIXES.get(Path(path).suffix.lower()) != "safetensors":
        return ()
    inside = tuple(name for name, value in like.state.items() if not isinstance(value, Tensor))
    return (*_around(like), *inside)


def kept(path: str | Path, like: Checkpoint) -> tuple[str, ...]:
    """What of a torch file besides the state dict goes into an output of that name as it is."""
    if like.format != "torch" or _SUFFIXES.get(Path(path).suffix.lower()) == "safetensors":
        return ()
    return _around(like)


def _around(like: Checkpoint) -> tuple[str, ...]:
    """The entries beside a state dict and beside what holds it."""
    container, found = like.container, []
    for number, step in enumerate(like.place):
        head = like.place[:number]
        names = list(container) if isinstance(container, dict) else range(len(container))
        found += [".".join(map(str, (*head, name))) for name in names if name != step]
        container = container[step]
    return tuple(found)


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, NaN included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.is_quantized:
        return torch.equal(a, b)
    x, y = (t.detach().contiguous().flatten().view(torch.uint8) if t.numel() else t for t in (a, b))
    return torch.equal(x, y)


def check_output(path: str | Path, *, overwrite: bool, inputs: Iterable[str | Path] = ()) -> str:
    """The format that `save` will write under a name; called early, it saves a user the work that would be lost.

    Args:
        path: the name.
        overwrite: whether a file of that name may be replaced.
        inputs: files that it must not be, under whatever name.

    Raises:
        OutputError: the suffix is unknown, the file is an input, or exists and may not be replaced.
    """
    path = Path(path)
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise OutputError(f"{path}: expected a name that ends in {', '.join(_SUFFIXES)}, got {path.suffix!r}")
    check_target(path, overwrite=overwrite, inputs=inputs)
    return kind
