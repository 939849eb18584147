"""Pickled objects next to the weights in a torch file: read around, but never created.

Each is replaced by a stand-in that ignores all calls: no module is imported, no class instantiated, no function called.
The stand-ins are then removed, since they cannot be written back without the objects' code.
"""

from __future__ import annotations

import re
import sys
import warnings
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from torch import Tensor

#: Most names of classes and functions that a file may have; ordinary files have a few.
_MAX_NAMES = 64

#: Modules of Python's standard library, also by their Python 2 names, which torch's pickles use. An attack would call
#: their functions; ordinary data only needs those in `_DATA_TYPES`.
_LIBRARY = sys.stdlib_module_names | IMPORT_MAPPING.keys()
_DATA_TYPES = re.compile(
    r"_codecs\.encode|(copy_reg|copyreg)\._reconstructor|(collections|datetime|pathlib)\.\w+"
    r"|argparse\.Namespace|types\.SimpleNamespace|functools\.partial|uuid\.UUID|decimal\.Decimal|fractions\.Fraction"
    r"|(__builtin__|builtins)\.(object|set|frozenset|complex|slice|range|xrange|list|dict|tuple|int|long|float|bool|str|unicode|bytes)"
)

_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.Size, torch.dtype, torch.device)
_PLAIN_KEYS = (type(None), bool, int, float, str, bytes)


class _Kind(type):
    """Equal to `dict`, because torch's reader checks that type before it fills a stand-in."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is dict

    __hash__ = type.__hash__


class StandIn(list[Any], metaclass=_Kind):
    """Replaces a class, a function, or an object made by one; a list, because torch's reader appends to it."""

    def __new__(cls, *_arguments: Any, **_options: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        super().__init__()

    def __setstate__(self, _state: Any) -> None:
        pass

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass

    def append(self, _item: Any) -> None:
        pass

    def extend(self, _items: Any) -> None:
        pass

    def __reduce_ex__(self, _protocol: SupportsIndex) -> Any:
        raise TypeError("a stand-in is never written")

    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


def read_around_objects(path: Path, names: Sequence[str]) -> Any:
    """Read a file that holds pickled objects, with a stand-in for each.

    Args:
        path: a file that `torch.load` refuses for these objects.
        names: the classes and functions that it names.

    Returns:
        The content; None if the file names a function of the standard library, or cannot be read.
    """
    if len(names) > _MAX_NAMES or any(_is_library(name) for name in names):
        return None
    try:
        known = {spelling for name in names for spelling in (name, _modern(name))}
        stand_ins = torch.serialization.safe_globals([(StandIn, name) for name in known])
        with path.open("rb") as stream, stand_ins, warnings.catch_warnings(action="ignore"):
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception:
        return None


def is_stand_in(value: Any) -> bool:
    """Whether a value is a stand-in for a pickled object or its class."""
    return value is StandIn or isinstance(value, StandIn)


def without_stand_ins(content: Any) -> tuple[Any, tuple[str, ...]]:
    """The plain data in a content, and the names of the entries that were removed.

    An entry of a dict is removed as a whole; in a list or tuple, it becomes None. Attributes of tensors, which may be
    such objects too, are dropped.

    Raises:
        RecursionError: the content is nested too deeply.
    """
    taken: dict[str, None] = {}
    return _Cleaner(taken).plain(content, ""), tuple(taken)


class _Cleaner:
    """Removes stand-ins from a content; visits each object once, even if references are repeated or circular."""

    def __init__(self, taken: dict[str, None]) -> None:
        self.taken = taken
        self.done: dict[int, Any] = {}

    def plain(self, value: Any, name: str) -> Any:
        """The value without stand-ins; `_GONE` if it is one."""
        if id(value) in self.done:
            return self.done[id(value)]
        if is_stand_in(value):  # checked first, because its type equals dict
            self.taken.setdefault(name)
            return _GONE
        if isinstance(value, Tensor):
            result: Any = value.detach()
        elif type(value) in (dict, OrderedDict, Counter):
            return self._mapping(value, name)
        elif type(value) is list:
            result = self.done[id(value)] = []
            result.extend(self._elements(value, name))
            return result
        elif type(value) in (tuple, set):
            result = type(value)(self._elements(value, name))
        elif type(value) in _PLAIN:
            return value
        else:
            self.taken.setdefault(name)
            return _GONE
        self.done[id(value)] = result
        return result

    def _mapping(self, value: Any, name: str) -> Any:
        result = self.done[id(value)] = type(value)()
        for key, inner in value.items():
            inside = f"{name}.{key}" if name else str(key)
            if not _is_plain_key(key):
                self.taken.setdefault(f"{name or 'the file'} (a key that is an object)")
                continue
            kept = self.plain(inner, inside)
            if kept is not _GONE:
                result[key] = kept
        if isinstance(value, OrderedDict):
            note = self.plain(vars(value).get("_metadata"), f"{name}._metadata" if name else "_metadata")
            if isinstance(note, Mapping):
                result._metadata = note
        return result

    def _elements(self, value: Any, name: str) -> list[Any]:
        kept = [self.plain(inner, f"{name}.{number}" if name else str(number)) for number, inner in enumerate(value)]
        return [None if inner is _GONE else inner for inner in kept]


_GONE = object()


def _is_plain_key(key: Any) -> bool:
    return type(key) in _PLAIN_KEYS or (type(key) is tuple and all(type(part) in _PLAIN_KEYS for part in key))


def _is_library(name: str) -> bool:
    return name.partition(".")[0] in _LIBRARY and not _DATA_TYPES.fullmatch(name)


def _modern(name: str) -> str:
    """A Python 2 name as torch's reader looks it up."""
    module, _, last = name.rpartition(".")
    if (module, last) in NAME_MAPPING:
        return ".".join(NAME_MAPPING[module, last])
    return f"{IMPORT_MAPPING.get(module, module)}.{last}"
