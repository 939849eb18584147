"""The verbs: `read` or `load` a file, `save` one; its content tells the format, and on writing its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.atomic import check_target
from unbackdoor.checkpoint import foreign
from unbackdoor.checkpoint.checkpoint import Checkpoint, Contents, tensors_of
from unbackdoor.checkpoint.format import FORMATS, format_of
from unbackdoor.checkpoint.places import choose
from unbackdoor.errors import CheckpointError, OutputError


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
        kind = next((FORMATS[name] for name in FORMATS if FORMATS[name].recognises(head, path)), None)
        if kind is None:
            what = foreign.name(head, path)
            known = f": {what}" if what else f" (its first bytes are {head[:9]!r})"
            raise CheckpointError(f"{path}: neither a safetensors file nor a PyTorch one{known}")
        return kind.read(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


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
        path: ends in .safetensors, or in .pt, .pth, .bin, .ckpt or .tar, or as another format in `FORMATS` wants it.
        tensors: name -> tensor.
        like: the file that they came from: every name is written as it was there, other tensors of that state dict
            are kept, and from torch to torch all other plain data (optimiser, epoch).
        metadata: strings for a safetensors file, added to those of `like`.
        overwrite: whether a file of that name may be replaced.

    Raises:
        OutputError: the suffix is unknown, the file exists, or it cannot be written.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    kind = format_of(path)
    assert kind is not None
    state = dict(tensors) if like is None else like.in_file(tensors)
    kind.write(path, state, like=like, metadata=metadata or {}, overwrite=overwrite)


def holds(path: str | Path, tensors: Mapping[str, Tensor], like: Checkpoint) -> bool:
    """Whether a file that `save` wrote has these tensors, and everything else of that state dict, bit by bit.

    Raises:
        CheckpointError: it cannot be read.
    """
    contents = read(path)
    place = like.place if like.place in contents.places.values() else ()
    meant, written = tensors_of(like.in_file(tensors)), tensors_of(contents.at(place))
    return meant.keys() == written.keys() and all(_same(written[name], meant[name]) for name in meant)


def lost(path: str | Path, like: Checkpoint) -> tuple[str, ...]:
    """What a file held besides the tensors of its state dict, and an output of that name does not."""
    kind = format_of(Path(path))
    return () if kind is None else kind.lost(like)


def kept(path: str | Path, like: Checkpoint) -> tuple[str, ...]:
    """What of a file besides the tensors of its state dict goes into an output of that name as it is."""
    kind = format_of(Path(path))
    return () if kind is None else kind.kept(like)


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, NaN included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.is_quantized:
        return torch.equal(a, b)
    x, y = (t.detach().contiguous().flatten().view(torch.uint8) if t.numel() else t for t in (a, b))
    return torch.equal(x, y)


def check_output(path: str | Path, *, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Whether `save` can write under a name; called early, it saves a user the work that would be lost.

    Args:
        path: the name.
        overwrite: whether a file of that name may be replaced.
        inputs: files that it must not be, under whatever name.

    Raises:
        OutputError: the suffix is unknown, the file is an input, or exists and may not be replaced.
    """
    path = Path(path)
    if format_of(path) is None:
        known = ", ".join(suffix for name in FORMATS for suffix in FORMATS[name].suffixes)
        raise OutputError(f"{path}: expected a name that ends in {known}, got {path.suffix!r}")
    check_target(path, overwrite=overwrite, inputs=inputs)
