"""Read and write model files. On reading, the content decides the format; on writing, the suffix."""

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
    """Read the one network in a model file, found by its names; no code in the file is run.

    Args:
        path: a safetensors file, or a state dict that `torch.save` wrote (bare, or in dicts and lists).
        key: which network to read if the file holds several: "state_dict_ema", "model.state_dict".

    Raises:
        CheckpointError: the file is missing, damaged, refused, or holds no state dict.
    """
    if not isinstance(path, (str, Path)):
        raise CheckpointError(f"expected the path of a model file, got {type(path).__name__}")
    return choose(read(path), key)


def read(path: str | Path) -> Contents:
    """Read all of a model file; which tensors are the network's is decided later. No code in the file is run.

    Raises:
        CheckpointError: the file is missing, damaged, refused, or holds no state dict.
    """
    path = Path(path)
    try:
        if not path.is_file():
            what = foreign.folder(path) if path.is_dir() else "a device or a pipe" if path.exists() else None
            raise CheckpointError(
                f"{path}: " + ("the file does not exist" if what is None else f"expected a model file, got {what}")
            )
        with path.open("rb") as stream:
            head = stream.read(foreign.HEAD)
        if not head:
            raise CheckpointError(f"{path}: the file is empty")
        part = foreign.shard(path)
        if part is not None:
            raise CheckpointError(f"{path}: expected a whole network, got {part}")
        kind = next((FORMATS[name] for name in FORMATS if FORMATS[name].recognises(head, path)), None)
        if kind is None:
            what = foreign.name(head, path) or f"one that begins with the bytes {head[:9]!r}"
            raise CheckpointError(f"{path}: expected a safetensors or PyTorch file, got {what}")
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
    """Write a model file, completely or not at all; the suffix decides the format.

    Args:
        path: ends in .safetensors, .pt, .pth, .bin, .ckpt or .tar, or in a suffix of another format in `FORMATS`.
        tensors: name -> tensor.
        like: the original file. Its names and the other tensors of its state dict are kept, and from torch to torch
            all other plain data (optimiser, epoch).
        metadata: strings for a safetensors file, added to those of `like`.
        overwrite: whether a file of that name may be replaced.

    Raises:
        OutputError: the suffix is unknown, the file already exists, or it cannot be written.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    kind = format_of(path)
    assert kind is not None
    state = dict(tensors) if like is None else like.in_file(tensors)
    kind.write(path, state, like=like, metadata=metadata or {}, overwrite=overwrite)


def holds(path: str | Path, tensors: Mapping[str, Tensor], like: Checkpoint) -> bool:
    """Whether a file that `save` wrote has these tensors, and the rest of the state dict of `like`, bit for bit.

    Raises:
        CheckpointError: it cannot be read.
    """
    contents = read(path)
    place = like.place if like.place in contents.places.values() else ()
    meant, written = tensors_of(like.in_file(tensors)), tensors_of(contents.at(place))
    return meant.keys() == written.keys() and all(_same(written[name], meant[name]) for name in meant)


def lost(path: str | Path, like: Checkpoint) -> tuple[str, ...]:
    """The entries of `like` that an output named `path` cannot hold."""
    kind = format_of(Path(path))
    return () if kind is None else kind.lost(like)


def kept(path: str | Path, like: Checkpoint) -> tuple[str, ...]:
    """The entries of `like`, besides its weights, that an output named `path` keeps unchanged."""
    kind = format_of(Path(path))
    return () if kind is None else kind.kept(like)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, NaN included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.is_quantized:
        return torch.equal(a, b)
    x, y = (t.detach().contiguous().flatten().view(torch.uint8) if t.numel() else t for t in (a, b))
    return torch.equal(x, y)


def check_output(path: str | Path, *, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Check that `save` can write a file; called early, before work is done that would be lost.

    Args:
        path: the name.
        overwrite: whether a file of that name may be replaced.
        inputs: files that must not be overwritten, whatever name they are given by.

    Raises:
        OutputError: the suffix is unknown, the file is an input, or exists and may not be replaced.
    """
    path = Path(path)
    if format_of(path) is None:
        known = ", ".join(suffix for name in FORMATS for suffix in FORMATS[name].suffixes)
        raise OutputError(f"{path}: expected a name that ends in {known}, got {path.suffix!r}")
    check_target(path, overwrite=overwrite, inputs=inputs)
