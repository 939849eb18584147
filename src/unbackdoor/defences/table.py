"""Every defence by name: data-free and data-based ones together."""

from __future__ import annotations

from unbackdoor.defences import data_based, data_free
from unbackdoor.defences.base import DEFENCES, Defence
from unbackdoor.errors import SettingError
from unbackdoor.settings import build, read_options

#: Class methods that build a method with settings of another source, or others that belong together, as `--preset`
#: names them.
PRESETS = ("backdoorbench", "as_published", "as_printed", "either_norm", "auto")

__all__ = ["DEFENCES", "PRESETS", "data_based", "data_free", "parse_method", "presets_of"]


def parse_method(text: str, *, preset: str | None = None) -> Defence:
    """`anp`, `anp:threshold=0.1,lr=0.2` or `anp@backdoorbench` -> a defence.

    Args:
        text: name and settings, or name and preset.
        preset: take the settings of `backdoorbench`, ... instead; then none may be given.

    Raises:
        SettingError: the method, a setting or the preset is unknown, or a value is out of its range.
    """
    if not isinstance(text, str):
        raise SettingError(f"method: expected a name such as lpp or anp:threshold=0.1, got {type(text).__name__}")
    head, _, options = text.partition(":")
    name, at, behind = head.partition("@")
    kind = DEFENCES[name]
    if at:
        if preset is not None:
            raise SettingError(f"method {text!r}: give a preset behind @ or with --preset, not both")
        preset = behind
    if preset is None:
        return build(kind, f"method {name}", read_options(options))
    if preset not in presets_of(kind):
        has = ", ".join(presets_of(kind)) or "none"
        raise SettingError(f"method {name}: unknown preset {preset!r}; it has {has}")
    if options:
        raise SettingError(f"method {name}: give settings or --preset {preset}, not both")
    method: Defence = getattr(kind, preset)()
    return method


def presets_of(kind: type[Defence]) -> tuple[str, ...]:
    """The presets that a method has."""
    return tuple(preset for preset in PRESETS if hasattr(kind, preset))
