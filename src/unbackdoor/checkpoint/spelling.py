"""Other names for the same tensors, in published files of known networks.

The names of a file and those of a network are both brought to one common spelling and then compared, so that either may
be the older. Nothing is renamed in a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Patterns and their replacements.
_NAMES = (
    # torchvision's published DenseNets, of the time when the name of a module could hold a dot
    (re.compile(r"(?<=\.)(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    # the CIFAR ResNets of kuangliu's repository, and what descends from it
    (re.compile(r"(^|\.)shortcut\.(?=\d+\.)"), r"\1downsample."),
    (re.compile(r"(^|\.)linear\.(?=(?:weight|bias)$)"), r"\1fc."),
)

#: torch's parametrizations: the endings of the older hooks, all of which must be there, and the newer names.
_HOOKS = (
    (("_orig", "_u", "_v"), ("original", "0._u", "0._v")),  # spectral_norm
    (("_g", "_v"), ("original0", "original1")),  # weight_norm
)


def spell(names: Iterable[str]) -> dict[str, str]:
    """Each name -> its common spelling; empty if two names would become the same.

    Args:
        names: all names of one state dict.
    """
    result = spell_parametrizations(names)
    for pattern, other in _NAMES:
        result = {name: pattern.sub(other, spelling) for name, spelling in result.items()}
    return result if len(set(result.values())) == len(result) else {}


def spell_parametrizations(names: Iterable[str]) -> dict[str, str]:
    """Each name -> the same, with the names of the old weight_norm and spectral_norm hooks replaced by the new ones."""
    result = {name: name for name in names}
    for old, new in _HOOKS:
        for first in [name for name in result if name.endswith(old[0])]:
            whole = first.removesuffix(old[0])
            head, dot, last = whole.rpartition(".")
            parts = [whole + end for end in old]
            if last and all(result.get(part) == part for part in parts):
                stem = f"{head}{dot}parametrizations.{last}."
                result.update(zip(parts, (stem + end for end in new), strict=True))
    return result
