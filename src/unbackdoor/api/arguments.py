"""What a caller may hand to the functions of this folder: a name where an object belongs, and plain refusals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from unbackdoor.defences.base import Defence
from unbackdoor.errors import ArchitectureError, SettingError
from unbackdoor.models import Arch, parse_arch

if TYPE_CHECKING:
    from unbackdoor.attacks import Attack


def as_method(value: object) -> Defence:
    """A defence, or its name and settings, as in `--method`.

    Raises:
        SettingError: it is neither.
    """
    if isinstance(value, str):
        from unbackdoor.defences.table import parse_method

        return parse_method(value)
    if not isinstance(value, Defence):
        raise SettingError(f"method: expected a defence such as LPP(), or its name, got {_shown(value)}")
    return value


def as_attack(value: object) -> Attack | None:
    """An attack, its name and settings as in `--attack`, or None.

    Raises:
        SettingError: it is none of these.
    """
    from unbackdoor.attacks import Attack, parse_attack

    if isinstance(value, str):
        return parse_attack(value)
    if value is not None and not isinstance(value, Attack):
        raise SettingError(f"attack: expected an attack, its name, or None, got {_shown(value)}")
    return value


def as_arch(value: object) -> Arch | None:
    """An architecture, its name as in `--arch`, or None.

    Raises:
        ArchitectureError: it is none of these, or no known network.
    """
    if isinstance(value, str):
        return parse_arch(value)
    if value is not None and not isinstance(value, Arch):
        raise ArchitectureError(f"arch: expected a name such as torchvision:resnet18, or None, got {_shown(value)}")
    return value


def check_file(value: object) -> None:
    """SettingError unless a value can be the name of a file."""
    if not isinstance(value, (str, Path)):
        raise SettingError(f"expected the path of a model file, got {_shown(value)}")


def _shown(value: object) -> str:
    if isinstance(value, nn.Module):
        return f"a network ({type(value).__name__})"
    if isinstance(value, type):
        return f"the class {value.__name__}; write {value.__name__}()"
    return f"{type(value).__name__} {str(value)[:60]!r}"
