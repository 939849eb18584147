"""A model file in memory: its tensors by name, and what is needed to write it back in the same form."""

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

#: The path from a torch file's content down to a state dict: keys of dicts, positions in lists.
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Contents:
    """The content of a file, before it is decided which part of it is the network.

    Attributes:
        path: the file.
        format: its name in `FORMATS`: "safetensors", "torch".
        content: the tensors of a safetensors file; all plain data of a torch file.
        places: `--key`'s name for each state dict -> where it is; "" -> () if the whole content is one.
        metadata: the strings in a safetensors file.
        ordered: whether the names are in the order of the modules (safetensors sorts them).
        passed_over: entries of a torch file that are not in `content`: pickled objects, an attack's data.
        objects: the classes and functions that the pickled objects name; none was imported or called.
        graph: the layers (`unbackdoor.findings.layers.LayerGraph`), if the format stores them.
        data: what the file calls the data set that it was trained on, if it says so.
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
    data: str | None = None

    def at(self, place: Place) -> Mapping[str, Any]:
        """The state dict at a place."""
        return follow(self.content, place)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Stored:
    """How a file holds a tensor of the network.

    Attributes:
        names: its names in the file; none for a tied tensor that the file leaves out.
        fold: the name in `FOLDS` of how several tensors are joined to this one; "" if it is stored unchanged.
    """

    names: tuple[str, ...]
    fold: str = ""

    def read(self, state: Mapping[str, Tensor]) -> Tensor:
        """The network's tensor, joined from its parts in the file."""
        parts = tuple(state[name] for name in self.names)
        return FOLDS[self.fold].join(parts) if self.fold else parts[0]

    def write(self, state: Mapping[str, Tensor], tensor: Tensor) -> dict[str, Tensor]:
        """The file's tensors that give this tensor of the network."""
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
        prefix: the beginning that all names in the file share.
        key: `--key`'s name for the state dict in a torch file ("state_dict", "model.state_dict", ...), or None.
        place: the path to the state dict in `container`.
        container: the whole content, so that it can be written back.
        state: the state dict, unchanged.
        stored: how the file holds those tensors that are not simply under prefix + name.
        unread: names, in the file, of the other tensors in the same state dict.
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
        """The file's state dict with new tensors for the network; names and other entries stay as they are."""
        result = copy.copy(self.state)
        assert isinstance(result, dict)
        for name, tensor in tensors.items():
            if self.tensors.get(name) is tensor and name in self.stored:
                continue  # unchanged, so its parts stay bit for bit
            stored = self.stored.get(name) or Stored((self.prefix + name,))
            result.update(stored.write(self.state, tensor))
        return result

    def renamed(self) -> dict[str, str]:
        """The network's name of a tensor -> the file's name, where they differ by more than the prefix."""
        alone = {name: stored.names[0] for name, stored in self.stored.items() if len(stored.names) == 1}
        return {name: other for name, other in alone.items() if other != self.prefix + name}

    def folded(self) -> dict[str, tuple[str, ...]]:
        """The network's name -> the file's names, for tensors that are stored in several parts."""
        return {name: stored.names for name, stored in self.stored.items() if stored.fold}

    def left_out(self) -> tuple[str, ...]:
        """Tied tensors that the file holds only under their other name."""
        return tuple(name for name, stored in self.stored.items() if not stored.names)


def follow(content: Any, place: Place) -> Any:
    """The value at a place in a file's content."""
    for step in place:
        content = content[step]
    return content


def tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The entries of a state dict that are tensors."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def entries_around(like: Checkpoint) -> tuple[str, ...]:
    """The entries of a file outside the state dict, as dotted paths."""
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
    """Some tensors of a state dict as a `Checkpoint`.

    Args:
        contents: the file.
        key, place: where the state dict is in it.
        tensors: by the network's names.
        prefix: the beginning that their names share in the file.
        stored: how the file holds those tensors that are not simply under prefix + name.
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
    """Remove the wrappers' prefixes that all names share, nested ones too; returns the tensors and the prefix."""
    prefix = ""
    names = dict(tensors)
    while names:
        common = next((p for p in WRAPPER_PREFIXES if all(name.startswith(p) for name in names)), None)
        if common is None:
            break
        names = {name.removeprefix(common): tensor for name, tensor in names.items()}
        prefix += common
    return names, prefix
