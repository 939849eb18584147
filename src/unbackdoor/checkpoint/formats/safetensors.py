"""safetensors files: tensors and strings, and no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as _to_bytes
from torch import Tensor

from unbackdoor.atomic import atomic_write
from unbackdoor.checkpoint import foreign
from unbackdoor.checkpoint.checkpoint import Checkpoint, Contents, entries_around, tensors_of
from unbackdoor.checkpoint.format import FORMATS
from unbackdoor.errors import CheckpointError, OutputError

#: Bytes; the header of a network of ten thousand tensors has about one million.
MAX_HEADER = 16 * 1024 * 1024


def read(path: Path) -> Contents:
    """Read a file.

    Raises:
        CheckpointError: it is not a safetensors file, is damaged, or holds no tensors.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    return Contents(path, "safetensors", tensors, {"": ()}, metadata=metadata)


def _check_header(path: Path) -> None:
    """Refuse what the safetensors library accepts: a huge header, or a tensor named twice (ValueError)."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError(f"expected a header of at most {MAX_HEADER} bytes, got {length}")
        json.loads(stream.read(length), object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name appears twice in its header")
    return result


def _in_order(data: bytes) -> tuple[bytes, memoryview]:
    """A file's header with its strings sorted, and its body; the library writes the strings in random order."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the body stays aligned
    return len(text).to_bytes(8, "little") + text, memoryview(data)[end:]


def save(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None, overwrite: bool
) -> None:
    """Write a file, completely or not at all.

    Tensors that share memory are written separately, as the format requires; the module that they are loaded into ties
    them again.
    """
    if "__metadata__" in tensors:  # the library would write a file that it cannot read
        raise OutputError(
            f"{path}: safetensors cannot hold these tensors: the name '__metadata__' is reserved; rename that tensor"
        )
    plain = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in seen or tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(pointer)
        plain[name] = tensor
    try:
        data = _to_bytes(plain, metadata={"format": "pt", **(metadata or {})})
    except Exception as error:
        raise OutputError(f"{path}: safetensors cannot hold these tensors: {error}; save them as a .pt file") from error
    header, body = _in_order(data)
    with atomic_write(path, overwrite=overwrite) as stream:
        stream.write(header)
        stream.write(body)


class Safetensors:
    """Tensors by name, and strings."""

    suffixes = (".safetensors",)
    nested = False

    def recognises(self, head: bytes, path: Path) -> bool:
        """By the header after its length; if that is too large, only if the file is nothing else that is known."""
        plausible = int.from_bytes(head[:8], "little") <= MAX_HEADER
        return head[8:9] == b"{" and (plausible or foreign.name(head, path) is None)

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
        strings = {**(like.metadata if like else {}), **metadata}
        save(path, tensors_of(state), metadata=strings, overwrite=overwrite)

    def kept(self, like: Checkpoint) -> tuple[str, ...]:
        """Nothing but tensors."""
        del like
        return ()

    def lost(self, like: Checkpoint) -> tuple[str, ...]:
        """Everything else."""
        return (*entries_around(like), *(name for name, value in like.state.items() if not isinstance(value, Tensor)))


FORMATS.add("safetensors", Safetensors())
