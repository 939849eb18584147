"""safetensors files: tensors and strings, nothing that runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as _to_bytes
from torch import Tensor

from unbackdoor.checkpoint.atomic import atomic_write
from unbackdoor.checkpoint.checkpoint import Checkpoint, strip_prefix
from unbackdoor.errors import CheckpointError


def load(path: Path) -> Checkpoint:
    """Read a file.

    Raises:
        CheckpointError: it is not a safetensors file, or a damaged one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    names, prefix = strip_prefix(tensors)
    return Checkpoint(path, "safetensors", names, prefix=prefix, metadata=metadata)


def save(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None, overwrite: bool
) -> None:
    """Write a file, whole or not at all.

    Tensors that share memory are written once each, as the format wants; loading them gives equal values, and the
    module that they are loaded into restores the tie.
    """
    plain = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in seen or tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(pointer)
        plain[name] = tensor
    data = _to_bytes(plain, metadata={"format": "pt", **(metadata or {})})
    with atomic_write(path, overwrite=overwrite) as stream:
        stream.write(data)
