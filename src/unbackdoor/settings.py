"""Each hyper-parameter is described once, at its dataclass field: default, meaning, range, and who chose the default.

The check, the command-line option, the key in a grid and the row in the docs are all made from it. Settings are written
as text in the form `name:key=value,key=value`; an unknown key is an error.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from unbackdoor.errors import SettingError

T = TypeVar("T")

_SETTING = "setting"
#: Metadata of a dataclass field that a user may not set.
INTERNAL: Mapping[str, Any] = MappingProxyType({_SETTING: None})


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The description of a hyper-parameter, without its name and default.

    Attributes:
        meaning: a phrase without a full stop at the end.
        least, most: the range, including its ends.
        above, below: the range, excluding its ends; `below=math.inf` means any finite number.
        choices: the allowed values; by default those of the field's type, if it is `Literal` or `bool`.
        kind: the field's type, if it can be checked: int, float, or bool or str with choices.
        own: whether the default is this package's choice, because the source gives none or another.
        added: whether it is newer than some results; at its default it is then left out of a cell's key.
    """

    meaning: str
    least: float = -math.inf
    most: float = math.inf
    above: float | None = None
    below: float | None = None
    choices: tuple[object, ...] = ()
    kind: type | None = None
    own: bool = False
    added: bool = False

    @property
    def expected(self) -> str:
        """What a value must be, in words, for messages."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        bounds = f" of {self.bounds}" if self.bounds.startswith("at") else f" {self.bounds}".rstrip()
        if self.kind is int:
            return f"a whole number{bounds}"
        if self.below == math.inf:
            return f"a finite number{bounds}"
        if self.above is None and self.below is None:
            bounds = f" from {_brief(self.least)} to {_brief(self.most)}"  # infinity is allowed
        return f"a number{bounds}"

    @property
    def bounds(self) -> str:
        """The range in words; "" if there is none."""
        if math.isfinite(self.least) and math.isfinite(self.most):
            return f"from {_brief(self.least)} to {_brief(self.most)}"
        words = [f"at least {_brief(self.least)}"] if math.isfinite(self.least) else []
        words += [] if self.above is None else [f"above {_brief(self.above)}"]
        words += [f"at most {_brief(self.most)}"] if math.isfinite(self.most) else []
        words += [] if self.below in (None, math.inf) else [f"below {_brief(self.below)}"]
        return " and ".join(words)

    def allows(self, value: object) -> bool:
        """Whether the field may have this value."""
        if self.choices:  # True is not 1 here
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        if self.kind is int:
            number = type(value) is int
        elif self.kind is float:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
        else:
            return True
        return number and self._in_range(typing.cast(float, value))

    def _in_range(self, value: float) -> bool:
        above = self.above is None or value > self.above
        below = self.below is None or value < self.below
        return self.least <= value <= self.most and above and below


def setting(
    default: T,
    meaning: str,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[T, ...] = (),
    own: bool = False,
    added: bool = False,
) -> T:
    """A dataclass field that is a hyper-parameter; see `Setting` for the arguments."""
    about = Setting(
        meaning=meaning, least=least, most=most, above=above, below=below, choices=choices, own=own, added=added
    )
    return dataclasses.field(default=default, metadata=described(about))


def described(about: Setting) -> dict[str, Setting]:
    """Metadata of a hyper-parameter's field, for a field without a default, which `setting` cannot make."""
    return {_SETTING: about}


@dataclass(frozen=True, kw_only=True)
class Configured:
    """A dataclass of hyper-parameters, which are checked when it is made and listed in its docstring."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        fields: dict[str, dataclasses.Field[Any]] = {}
        for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__[1:])):
            fields |= {field.name: field for field in dataclasses.fields(base)}
        fields |= {name: field for name, field in vars(cls).items() if isinstance(field, dataclasses.Field)}
        settings = {name: field.metadata.get(_SETTING) for name, field in fields.items()}
        lines = [f"    {name}: {about.meaning}." for name, about in settings.items() if about]
        text = inspect.cleandoc(cls.__doc__ or "")
        if lines:
            listed = [] if "\n\nAttributes:\n" in text else ["", "Attributes:"]
            cls.__doc__ = "\n".join([text, *listed, *lines])

    def __post_init__(self) -> None:
        check_settings(self)

    def settings(self) -> dict[str, Any]:
        """Every hyper-parameter by name."""
        return {field.name: getattr(self, field.name) for field in setting_fields(type(self))}


def check_settings(made: Any, prefix: str = "") -> None:
    """SettingError, starting with `prefix`, if a hyper-parameter of a dataclass has a value that its field forbids."""
    for name, about in settings_of(type(made)).items():
        value = getattr(made, name)
        if not about.allows(value):
            raise SettingError(f"{prefix}{name}: expected {about.expected}, got {value!r}")


def settings_of(cls: type) -> Mapping[str, Setting]:
    """The description of each hyper-parameter of a dataclass, by name; its kind comes from the field's type."""
    key: Any = cls  # mypy does not accept a class as a cache key
    return _settings_of(key)


@functools.cache
def _settings_of(cls: Any) -> Mapping[str, Setting]:
    hints = typing.get_type_hints(cls)
    found = {field.name: field.metadata.get(_SETTING) for field in dataclasses.fields(cls)}
    return MappingProxyType({name: _typed(about, hints[name]) for name, about in found.items() if about})


def _typed(about: Setting, hint: Any) -> Setting:
    if typing.get_origin(hint) is Literal:
        return dataclasses.replace(about, kind=str, choices=about.choices or typing.get_args(hint))
    if hint is bool:
        return dataclasses.replace(about, kind=bool, choices=(False, True))
    return dataclasses.replace(about, kind=hint) if hint in (int, float) else about


def _brief(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def read_options(text: str) -> dict[str, Any]:
    """`size=3,pattern=white` -> {"size": 3, "pattern": "white"}; numbers, true and false are recognised.

    Raises:
        SettingError: a part is not key=value, or a key is given twice.
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
    return ",".join(f"{key}={written(value)}" for key, value in options.items())


def build(cls: type[T], name: str, options: Mapping[str, Any]) -> T:
    """Make a dataclass from settings; an int is accepted for a float field, so that `u=3` means `u=3.0`.

    Args:
        cls: a frozen dataclass.
        name: its name in messages.
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
    """The fields of a dataclass that a user may set: all except INTERNAL ones."""
    return [field for field in dataclasses.fields(cls) if field.metadata.get(_SETTING, True)]


def distinguishing(made: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that identify `made`: settings with `added` are left out while they have their default.

    So its digest stays the same when its class gets a new setting.

    Args:
        made: a dataclass.
        settings: its settings by name, and other entries, which are kept.
    """
    untouched = {
        field.name
        for field in dataclasses.fields(made)
        if (about := field.metadata.get(_SETTING)) and about.added and getattr(made, field.name) == field.default
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


def written(value: Any) -> str:
    """A value in the form that a user types."""
    return str(value).lower() if isinstance(value, bool) else str(value)
