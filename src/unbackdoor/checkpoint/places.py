"""Where the state dicts in a torch file are: bare, or in dicts and lists, up to three levels down."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from unbackdoor.checkpoint.checkpoint import Checkpoint, Contents, Place, strip_prefix, view
from unbackdoor.checkpoint.format import FORMATS
from unbackdoor.errors import CheckpointError

#: Levels of dicts and lists above a state dict, and how many elements of a list are looked at.
_MAX_DEPTH, _MAX_LENGTH = 3, 100


def state_dicts(content: Any) -> dict[str, Place]:
    """The state dicts in a file's content: `--key`'s name for each -> its place; shorter paths come first."""
    found: dict[str, Place] = {}
    for place in sorted(_search(content, (), {}), key=len):
        found.setdefault(".".join(map(str, place)), place)
    return found


def _search(value: Any, place: Place, seen: dict[int, bool]) -> Iterator[Place]:
    """The paths to state dicts; an object that appears in several places is searched once."""
    first = id(value) not in seen
    if first:
        seen[id(value)] = is_state_dict(value)
    if seen[id(value)]:
        yield place
    elif first and len(place) < _MAX_DEPTH:
        for step, inner in _steps(value):
            if isinstance(inner, Mapping | list | tuple):
                yield from _search(inner, (*place, step), seen)


def _steps(value: Any) -> list[tuple[str | int, Any]]:
    """The entries to search; an optimiser's state is never a network."""
    if isinstance(value, Mapping) and "param_groups" not in value:
        return [(name, inner) for name, inner in value.items() if isinstance(name, str)]
    return list(enumerate(value)) if isinstance(value, list | tuple) and len(value) <= _MAX_LENGTH else []


def is_state_dict(value: Any) -> bool:
    """Whether a value maps names to tensors; other values are allowed if a tensor's name has a dot, as in a module."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) for name in value):
        return False
    tensors = [name for name, inner in value.items() if isinstance(inner, Tensor)]
    return len(tensors) == len(value) or any("." in name for name in tensors)


def resolve(contents: Contents, key: str) -> tuple[str, Place, str]:
    """Look up a key: returns (name of the state dict, its place, prefix of names inside it).

    An entry with exactly that name comes before a path through several. The rest of a key inside a state dict is a
    prefix of tensor names.

    Raises:
        CheckpointError: nothing has that name.
    """
    if key in contents.places:
        return key, contents.places[key], ""
    for shown, place in contents.places.items():
        rest = key if not shown else key.removeprefix(shown + ".") if key.startswith(shown + ".") else ""
        prefix = rest.removesuffix(".") + "."
        if rest and any(name.startswith(prefix) for name in contents.at(place)):
            return shown, place, prefix
    if not FORMATS[contents.format].nested:
        raise CheckpointError(
            f"{contents.path}: --key {key}: a {contents.format} file holds one state dict only; leave out --key"
        )
    raise CheckpointError(f"{contents.path}: holds no state dict under {key!r}; found {_list(contents.places)}")


def choose(contents: Contents, key: str | None = None) -> Checkpoint:
    """The one network in a file, found by its names.

    Args:
        contents: the file.
        key: which state dict to use, if there are several.

    Raises:
        CheckpointError: there is no such state dict, there are several, or it holds tensors that cannot be used.
    """
    prefix = ""
    if key is not None:
        shown, place, prefix = resolve(contents, key)
    else:
        likely = {shown: place for shown, place in contents.places.items() if _has_modules(contents.at(place))}
        found = likely if len(likely) == 1 else contents.places
        if len(found) > 1:
            raise CheckpointError(f"{contents.path}: holds several state dicts: {_list(found)}; choose one with --key")
        ((shown, place),) = found.items()
    tensors = check_tensors(contents, place)
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    names, wrapper = strip_prefix(inside)
    return view(contents, shown, place, names, prefix=prefix + wrapper)


def check_tensors(contents: Contents, place: Place) -> dict[str, Tensor]:
    """The tensors of a state dict.

    Raises:
        CheckpointError: a tensor is not dense or not on the CPU, claims more elements than the file holds, or is
            packed (quantised).
    """
    path = contents.path
    tensors = {}
    for name, tensor in contents.at(place).items():
        if not isinstance(tensor, Tensor):
            if "_packed_params" in name:
                raise CheckpointError(
                    f"{path}: {name!r}: packed, quantised weights cannot be scored or repaired; use the network as it "
                    "was before quantisation"
                )
            continue
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{path}: {name!r}: expected a dense CPU tensor, got {tensor.layout} on {tensor.device}"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {name!r}: claims {tensor.numel()} elements, the file holds "
                f"{tensor.untyped_storage().nbytes() // tensor.element_size()}; the file is damaged"
            )
        tensors[name] = tensor
    return tensors


def replaced(content: Any, place: Place, state: Any) -> Any:
    """The content with a new state dict at a place; everything else is unchanged."""
    if not place:
        return state
    step, *rest = place
    inner = replaced(content[step], tuple(rest), state)
    if isinstance(content, tuple):
        return tuple(inner if number == step else value for number, value in enumerate(content))
    result = copy.copy(content)  # unlike its own copy(), keeps an OrderedDict's _metadata
    result[step] = inner
    return result


def describe(content: Any) -> str:
    """Describe a content that is not a state dict, for a message."""
    if isinstance(content, Mapping):
        return "a dict with the entries " + (", ".join(map(repr, list(content)[:8])) or "(none)")
    if isinstance(content, list) and content and all(isinstance(value, Tensor) for value in content):
        return "a list of tensors without names"
    return type(content).__name__


def _has_modules(state: Mapping[str, Any]) -> bool:
    return any("." in name for name, value in state.items() if isinstance(value, Tensor))


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
