"""Attacks as text, `bpp@as_published:target=3`, and as records, as in attack.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unbackdoor.attacks.base import ATTACKS, Attack
from unbackdoor.errors import SettingError
from unbackdoor.settings import build, read_options

#: Class methods that make an attack with the settings of a source; a preset follows the @ in `bpp@...`.
PRESETS = ("backdoorbench", "as_published")


def parse_attack(text: str, *, target: int | None = None) -> Attack:
    """`badnet`, `badnet:size=3,pattern=white`, `bpp@as_published` or `bpp@as_published:target=3` -> an attack.

    Args:
        text: a name, "@" and a preset, and ":" and settings, which override the preset.
        target: the attacker's class; None takes the one in the text, else 0.

    Raises:
        SettingError: the attack, the preset or a setting is unknown, or the text has another target.
    """
    if not isinstance(text, str):
        raise SettingError(f"attack: expected a name such as badnet or badnet:size=3, got {type(text).__name__}")
    head, _, options = text.partition(":")
    name, at, preset = head.partition("@")
    kind = ATTACKS[name]
    settings = _of_preset(kind, preset) if at else {}
    attack = build(kind, f"attack {head}", {**settings, "target": target or 0, **read_options(options)})
    check_target_class(attack, target, f"attack {text!r}")
    return attack


def presets_of(kind: type[Attack]) -> tuple[str, ...]:
    """The names of an attack's presets."""
    return tuple(preset for preset in PRESETS if hasattr(kind, preset))


def _of_preset(kind: type[Attack], preset: str) -> dict[str, Any]:
    """A preset's settings."""
    if preset not in presets_of(kind):
        has = ", ".join(presets_of(kind)) or "none"
        raise SettingError(f"attack {kind.name}: unknown preset {preset!r}; it has {has}")
    settings = describe_attack(getattr(kind, preset)())
    del settings["name"]
    return settings


def check_target_class(attack: Attack, target: int | None, where: str) -> None:
    """SettingError if a target is given that is not the attack's."""
    if target is not None and target != attack.target:
        raise SettingError(f"{where}: its target is {attack.target}, not {target}; leave out --target")


def describe_attack(attack: Attack) -> dict[str, Any]:
    """Name and settings, ready for JSON; `read_attack` reads it back."""
    return {"name": attack.name, **attack.settings()}


def read_attack(record: Mapping[str, Any]) -> Attack:
    """The inverse of `describe_attack`.

    Raises:
        SettingError: the record has no name, or an unknown setting.
    """
    settings = dict(record)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise SettingError("attack record: expected an entry 'name'")
    return build(ATTACKS[name], f"attack {name}", settings)
