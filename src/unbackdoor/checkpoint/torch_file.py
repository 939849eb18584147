"""PyTorch's own files (.pt, .pth), opened with `weights_only=True`: nothing in them is ever called."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbackdoor.checkpoint.atomic import atomic_write
from unbackdoor.checkpoint.checkpoint import Checkpoint, strip_prefix
from unbackdoor.errors import CheckpointError


def load(path: Path, key: str | None = None) -> Checkpoint:
    """Read a file.

    Args:
        path: a file that `torch.save` wrote.
        key: which entry holds the state dict, where the file holds more than one.

    Raises:
        CheckpointError: it is damaged, holds pickled code, or holds no state dict, or several.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: it holds pickled objects besides tensors ({_reason(error)}), and opening it would run "
            "their code; in the environment it came from, save model.state_dict() instead"
        ) from error
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable PyTorch file: {_first_line(error)}") from error
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
    names, prefix = strip_prefix(found[key])
    return Checkpoint(path, "torch", names, prefix=prefix, key=key or None, container=content, ordered=True)


def save(path: Path, content: Any, *, overwrite: bool) -> None:
    """Write a file, whole or not at all."""
    with atomic_write(path, overwrite=overwrite) as stream:
        torch.save(content, stream)


def rebuild(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Any:
    """The file's content with other weights: same wrapper, same prefix, everything else as it was."""
    old = checkpoint.container if checkpoint.key is None else checkpoint.container[checkpoint.key]
    new = old.copy()  # an OrderedDict keeps its class and its _metadata
    for name, tensor in tensors.items():
        new[checkpoint.prefix + name] = tensor
    if checkpoint.key is None:
        return new
    content = dict(checkpoint.container)
    content[checkpoint.key] = new
    return content


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


def _reason(error: BaseException) -> str:
    """The callable's name out of torch's long message."""
    text = str(error)
    for mark in ("Unsupported global: GLOBAL ", "Unsupported class ", "Trying to load unsupported GLOBAL "):
        if mark in text:
            return text.split(mark)[1].split()[0]
    return _first_line(error)
