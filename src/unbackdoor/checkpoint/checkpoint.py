"""A model file in memory: its tensors by name, and what is needed to write it back the way it came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

#: The string in a safetensors file under which this package keeps the name of the network.
ARCH_KEY = "unbackdoor.arch"

#: Prefixes that training wrappers put before every name: DataParallel's and torch.compile's.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Checkpoint:
    """A state dict and where it came from.

    Attributes:
        path: the file.
        format: "safetensors" or "torch".
        tensors: name -> tensor; in the file's order, without the wrapper's prefix.
        prefix: what was taken off every name, and is put back on writing.
        key: the entry of a torch file that held the state dict ("state_dict", "model", ...), or None.
        container: the whole content of a torch file, so that what is not weights survives; None otherwise.
        metadata: a safetensors file's strings.
        ordered: whether the order of the names is that of the modules (safetensors sorts them).
        passed_over: entries of a torch file that are not in `container`: the data in an attack's result.
        objects: the classes and functions that these name, none of which was imported or called.
    """

    path: Path
    format: str
    tensors: Mapping[str, Tensor]
    prefix: str = ""
    key: str | None = None
    container: Any = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    ordered: bool = False
    passed_over: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()


def strip_prefix(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Take off the wrappers' prefixes that every name carries, nested ones too; returns names and prefix."""
    prefix = ""
    names = dict(tensors)
    while names:
        sure = next((p for p in WRAPPER_PREFIXES if all(name.startswith(p) for name in names)), None)
        if sure is None:
            break
        names = {name.removeprefix(sure): tensor for name, tensor in names.items()}
        prefix += sure
    return names, prefix
