"""BackdoorBench's `attack_result.pt`: a network beside the attack's data, of which only the network is taken.

The data may hold pickled arrays and objects of any class. In their place stand objects that ignore whatever is done to
them: no module is imported for them, no class is instantiated, no function called.
"""

from __future__ import annotations

import re
import sys
import warnings
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: What describes the network; `defense_result.pt` holds the same.
MODEL, MODEL_NAME, NUM_CLASSES = "model", "model_name", "num_classes"

#: What tells an attack's result from any other file.
_DATA = ("clean_data", "bd_train", "bd_test")

#: More names than the data of an attack have any use for.
_MAX_NAMES = 64

#: Python's own modules, under the names of Python 2 too, which torch's pickles use: an attack on the reader would call
#: their functions, and data name no more of them than `_DATA_TYPES`.
_LIBRARY = sys.stdlib_module_names | IMPORT_MAPPING.keys()
_DATA_TYPES = re.compile(
    r"_codecs\.encode|(copy_reg|copyreg)\._reconstructor|(collections|datetime|pathlib)\.\w+"
    r"|(__builtin__|builtins)\.(object|set|frozenset|complex|slice|range|xrange|bytearray)"
)


def network_part(content: Any) -> dict[str, Any] | None:
    """The entries of an attack's result that describe the network, or None for any other content."""
    if not isinstance(content, dict) or not any(name in content for name in _DATA):
        return None
    if not isinstance(content.get(MODEL_NAME), str) or type(content.get(NUM_CLASSES)) is not int:
        return None
    return {name: content[name] for name in (MODEL_NAME, NUM_CLASSES, MODEL)} if MODEL in content else None


def read_around_objects(path: Path, names: Sequence[str]) -> dict[str, Any] | None:
    """The content of an attack's result whose data hold pickled objects.

    Args:
        path: a file that `torch.load` refuses for these objects.
        names: the classes and functions that it names.

    Returns:
        The network's entries, and None for each of the others; or None as a whole where the file is no attack's
        result, names a function of Python's own, or has an object in the network.
    """
    if len(names) > _MAX_NAMES or any(_is_library(name) for name in names):
        return None
    try:
        stand_ins = torch.serialization.safe_globals([(_Inert, name) for name in names])
        with path.open("rb") as stream, stand_ins, warnings.catch_warnings(action="ignore"):
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception:
        return None
    part = network_part(content)
    if part is None or not isinstance(part[MODEL], dict):
        return None
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in part[MODEL].items()):
        return None
    # Neither the dict nor its tensors may bring attributes along: these, too, could hold such objects.
    part[MODEL] = {name: tensor.detach() for name, tensor in part[MODEL].items()}
    return {**dict.fromkeys(name for name in content if isinstance(name, str)), **part}


class _Inert:
    """Stands for a class, a function, and whatever either would have made."""

    def __new__(cls, *_arguments: Any, **_options: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


def _is_library(name: str) -> bool:
    return name.partition(".")[0] in _LIBRARY and not _DATA_TYPES.fullmatch(name)
