"""The verbs: `load` a model file, `save` one; the format is told from the content, and on writing from the name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from unbackdoor.atomic import check_target
from unbackdoor.checkpoint import safetensors_file, torch_file
from unbackdoor.checkpoint.checkpoint import Checkpoint
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
    """Read a model file; no code in it runs.

    Args:
        path: a safetensors file, or a state dict that `torch.save` wrote (bare, or in a dict).
        key: which entry of a torch file to read, where there are several.

    Raises:
        CheckpointError: it is missing, damaged, refused, or holds no state dict.
    """
    path = Path(path)
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is a device or a pipe" if path.exists() else "does not exist"
            raise CheckpointError(f"{path}: expected a model file, this {what}")
        with path.open("rb") as stream:
            head = stream.read(9)
        if not head:
            raise CheckpointError(f"{path}: the file is empty")
        # safetensors first: the length in front of its header may begin with the byte that begins a pickle.
        if head[8:9] == b"{":
            if key is not None:
                raise CheckpointError(f"{path}: --key {key}: a safetensors file holds one state dict only")
            checkpoint = safetensors_file.load(path)
        elif head[:2] == b"PK" or head[:1] == b"\x80":
            checkpoint = torch_file.load(path, key)
        else:
            raise CheckpointError(
                f"{path}: neither a safetensors file nor a PyTorch one (its first bytes are {head!r})"
            )
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if not checkpoint.tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    return checkpoint


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
        like: the file that they came from: its prefix comes back on every name, and from torch to torch everything
            else in it (optimiser, epoch) is kept.
        metadata: strings for a safetensors file, added to those of `like`.
        overwrite: whether a file of that name may be replaced.

    Raises:
        OutputError: the suffix is unknown, the file exists, or it cannot be written.
    """
    path = Path(path)
    kind = check_output(path, overwrite=overwrite)
    prefix = like.prefix if like else ""
    if kind == "safetensors":
        strings = {**(like.metadata if like else {}), **(metadata or {})}
        names = {prefix + name: tensor for name, tensor in tensors.items()}
        safetensors_file.save(path, names, metadata=strings, overwrite=overwrite)
    elif like is not None and like.format == "torch":
        torch_file.save(path, torch_file.rebuild(like, tensors), overwrite=overwrite)
    else:
        torch_file.save(path, {prefix + name: t for name, t in tensors.items()}, overwrite=overwrite)


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
