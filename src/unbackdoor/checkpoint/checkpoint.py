"""A model file in memory: its tensors by name, and what is needed to write it back the way it came."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from unbackdoor.checkpoint.folds import FOLDS

#: The string in a safetensors file under which this package keeps the name of the network.
ARCH_KEY = "unbackdoor.arch"

#: Prefixes that training wrappers put before every name: DataParallel's and torch.compile's.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")

#: The way from a torch file's whole content down to a state dict: keys of dicts, positions in lists.
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Contents:
    """What a file holds, before it is settled which of it is the network.

    Attributes:
        path: the file.
        format: its name in `FORMATS`: "safetensors", "torch".
        content: the tensors of a safetensors file; whatever plain data a torch file holds.
        places: where the state dicts in it are, by the name that `--key` has for them; () under "" is all of it.
        metadata: a safetensors file's strings.
        ordered: whether the order of the names is that of the modules (safetensors sorts them).
        passed_over: entries of a torch file that are not in `content`: pickled objects, the data of an attack.
        objects: the classes and functions that these name, none of which was imported or called.
        graph: the layers (`unbackdoor.graph.LayerGraph`), where the format says them.
    """

    path: Path
    format: str
    content: Any
    places: Mapping[str, Place]
    metadata: Mapping[str, str] = field(default_factory=dict)
    ordered: bool = False
    passed_over: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    graph: Any = None

    def at(self, place: Place) -> Mapping[str, Any]:
        """The state dict at a place."""
        return follow(self.content, place)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Stored:
    """How a file holds a tensor of the network.

    Attributes:
        names: the file's; none for a tied tensor that it left out.
        fold: what makes one tensor of several, by its name in `FOLDS`; empty where it is stored as it is.
    """

    names: tuple[str, ...]
    fold: str = ""

    def read(self, state: Mapping[str, Tensor]) -> Tensor:
        """The network's tensor."""
        parts = tuple(state[name] for name in self.names)
        return FOLDS[self.fold].join(parts) if self.fold else parts[0]

    def write(self, state: Mapping[str, Tensor], tensor: Tensor) -> dict[str, Tensor]:
        """What the file must hold for the network to have this tensor."""
        if not self.fold:
            return dict.fromkeys(self.names, tensor)
        parts = tuple(state[name] for name in self.names)
        return dict(zip(self.names, FOLDS[self.fold].split(parts, tensor), strict=True))


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one network in a file, under the network's names.

    Attributes:
        path: the file.
        format: its name in `FORMATS`: "safetensors", "torch".
        tensors: name -> tensor; in the file's order, without the prefix.
        prefix: what stands before every name in the file.
        key: where in a torch file the state dict was ("state_dict", "model.state_dict", ...), or None.
        place: the same as a way through the content.
        container: the whole content, so that what is not weights survives.
        state: the state dict as the file has it.
        stored: how the file holds those tensors of the network that are not under prefix and name.
        unread: the file's names of other tensors in the same state dict.
        copies: other state dicts in the file.
        metadata, ordered, passed_over, objects: as in `Contents`.
    """

    path: Path
    format: str
    tensors: Mapping[str, Tensor]
    prefix: str = ""
    key: str | None = None
    place: Place = ()
    container: Any = None
    state: Mapping[str, Any] = field(default_factory=dict)
    stored: Mapping[str, Stored] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    ordered: bool = False
    passed_over: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()

    def in_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The file's state dict with other tensors of the network: every name, and what is unread, as it was."""
        result = copy.copy(self.state)
        assert isinstance(result, dict)
        for name, tensor in tensors.items():
            if self.tensors.get(name) is tensor and name in self.stored:
                continue  # unchanged: its parts are too, to the bit
            stored = self.stored.get(name) or Stored((self.prefix + name,))
            result.update(stored.write(self.state, tensor))
        return result

    def renamed(self) -> dict[str, str]:
        """The network's name -> the file's, where the file has another beyond the prefix."""
        alone = {name: stored.names[0] for name, stored in self.stored.items() if len(stored.names) == 1}
        return {name: other for name, other in alone.items() if other != self.prefix + name}

    def folded(self) -> dict[str, tuple[str, ...]]:
        """The network's name -> the file's, for tensors that are made of several."""
        return {name: stored.names for name, stored in self.stored.items() if stored.fold}

    def left_out(self) -> tuple[str, ...]:
        """Tied tensors that the file holds under their other name alone."""
        return tuple(name for name, stored in self.stored.items() if not stored.names)


def follow(content: Any, place: Place) -> Any:
    """What stands at a place."""
    for step in place:
        content = content[step]
    return content


def tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What of a state dict is a tensor."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def entries_around(like: Checkpoint) -> tuple[str, ...]:
    """The entries beside a state dict and beside what holds it."""
    container, found = like.container, []
    for number, step in enumerate(like.place):
        head = like.place[:number]
        names = list(container) if isinstance(container, dict) else range(len(container))
        found += [".".join(map(str, (*head, name))) for name in names if name != step]
        container = container[step]
    return tuple(found)


def view(
    contents: Contents,
    key: str,
    place: Place,
    tensors: Mapping[str, Tensor],
    *,
    prefix: str = "",
    stored: Mapping[str, Stored] | None = None,
) -> Checkpoint:
    """Some tensors of a state dict as a network's.

    Args:
        contents: the file.
        key, place: where in it the state dict is.
        tensors: under the network's names.
        prefix: what stands before their names in the file.
        stored: how the file holds those of which this does not say it all.
    """
    state = contents.at(place)
    held = stored or {}
    read = {name for n in tensors for name in (held[n].names if n in held else (prefix + n,))}
    return Checkpoint(
        contents.path,
        contents.format,
        tensors,
        prefix=prefix,
        key=key or None,
        place=place,
        container=contents.content,
        state=state,
        stored=held,
        unread=tuple(name for name, value in state.items() if isinstance(value, Tensor) and name not in read),
        copies=tuple(other for other, there in contents.places.items() if there != place),
        metadata=contents.metadata,
        ordered=contents.ordered,
        passed_over=contents.passed_over,
        objects=contents.objects,
    )


def strip_prefix(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Take off the wrappers' prefixes that every name carries, nested ones too; returns names and prefix."""
    prefix = ""
    names = dict(tensors)
    while names:
        common = next((p for p in WRAPPER_PREFIXES if all(name.startswith(p) for name in names)), None)
        if common is None:
            break
        names = {name.removeprefix(common): tensor for name, tensor in names.items()}
        prefix += common
    return names, prefix
