"""Settings as text: `name:key=value,key=value` on a command line, and back; an unknown key is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from unbackdoor.errors import SettingError

T = TypeVar("T")

#: Metadata of a dataclass's field that older results do not know: at its default it is left out of their keys.
ADDED: Mapping[str, bool] = MappingProxyType({"added": True})


def read_options(text: str) -> dict[str, Any]:
    """`size=3,pattern=white` -> {"size": 3, "pattern": "white"}; numbers, true and false are recognised.

    Raises:
        SettingError: a part is not key=value, or a key comes twice.
    """
    result: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise SettingError(f"expected key=value, got {part!r}")
        if key in result:
            raise SettingError(f"{key} is given twice")
        result[key] = _read(value)
    return result


def write_options(options: Mapping[str, Any]) -> str:
    """The inverse of `read_options`."""
    return ",".join(f"{key}={_write(value)}" for key, value in options.items())


def build(cls: type[T], name: str, options: Mapping[str, Any]) -> T:
    """A dataclass from settings; a whole number where one with a point belongs is taken for that: `u=3` is `u=3.0`.

    Args:
        cls: a frozen dataclass.
        name: what the user calls it, for messages.
        options: values for some of its fields.

    Raises:
        SettingError: a key is not a field, or a value has the wrong type.
    """
    fields = {field.name: field for field in setting_fields(cls)}
    values = dict(options)
    for key, value in options.items():
        if key not in fields:
            raise SettingError(f"{name}: unknown setting {key!r}; it has {', '.join(fields) or 'none'}")
        default = fields[key].default
        if isinstance(default, float) and type(value) is int and abs(value) < 2**53:
            values[key] = float(value)
        elif default is not dataclasses.MISSING and type(value) is not type(default):
            raise SettingError(f"{name}: {key}: expected {type(default).__name__}, got {value!r}")
    return cls(**values)


def setting_fields(cls: type) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that a user may set: those whose metadata do not say otherwise."""
    return [field for field in dataclasses.fields(cls) if field.metadata.get("setting", True)]


def distinguishing(made: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What tells `made` from others of its class: settings that were ADDED count only where they are not at default.

    So a digest of it stays what it was before the class had them.

    Args:
        made: a dataclass.
        settings: its own by name, and whatever else is told of it.
    """
    untouched = {
        field.name
        for field in dataclasses.fields(made)
        if field.metadata.get("added") and getattr(made, field.name) == field.default
    }
    return {name: value for name, value in settings.items() if name not in untouched}


def _read(value: str) -> Any:
    if value in ("true", "false"):
        return value == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _write(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
