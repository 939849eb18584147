"""Records of files: read with types by msgspec, written so that a change can be reviewed in a diff."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

#: Columns of a line that holds more than one value.
WIDTH = 120


def read_json(content: bytes) -> Any:
    """JSON as it is.

    Raises:
        ValueError: it is none.
    """
    try:
        return msgspec.json.decode(content)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def typed(record: Any, kind: type[T], at: str = "") -> T:
    """A record, checked to the bottom, as a value of a type.

    Args:
        record: what JSON or TOML gave.
        kind: a msgspec.Struct, a dataclass, a list of them, ...
        at: where the record stands, for messages.

    Raises:
        ValueError: it is none: the place in it, what was expected there, and what came.
    """
    try:
        return msgspec.convert(record, kind)
    except msgspec.ValidationError as error:
        said, _, place = str(error).replace("`", "").partition(" - at $")
        place = place.lstrip(".")
        known = "" if place else ", ".join(getattr(kind, "__struct_fields__", ()))
        more = f"; it has {known}" if known else ""
        said = re.sub(r"^Object contains unknown field (.*)", rf"unknown key '\1'{more}", said)
        said = re.sub(r"^Object missing required field (.*)", r"expected '\1', which is missing", said)
        said = said.replace("Number out of range", "expected a number that a computer can hold")
        said = said[:1].lower() + said[1:]
        if said.startswith("expected") and ", got " not in said and not said.endswith("missing"):
            said += _came(record, place)
        raise ValueError(f"{at}{place}: {said}" if at or place else said) from error


def pretty(value: Any) -> str:
    """JSON to be reviewed in a diff: a value a line; lists and counts that fit stand on one, longer lists fill lines.

    Args:
        value: what JSON can say, dataclasses and the like; NaN it cannot.
    """
    return _pretty(msgspec.to_builtins(value), 0) + "\n"


_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode


def _pretty(value: Any, depth: int) -> str:
    items = list(value.values() if isinstance(value, dict) else value) if isinstance(value, (dict, list)) else []
    if not items:
        return _encode(value)
    flat = not any(isinstance(item, (dict, list)) for item in items)
    brief = isinstance(value, list) or (len(items) <= 3 and all(isinstance(item, (int, float)) for item in items))
    if flat and brief and len(line := _encode(value)) + depth <= WIDTH:
        return line
    if isinstance(value, dict):
        parts = [f"{_encode(key)}: {_pretty(item, depth + 1)}" for key, item in value.items()]
    else:
        parts = _filled([_encode(item) for item in items], depth) if flat else [_pretty(x, depth + 1) for x in items]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    space = "\n" + " " * depth
    return begin + space + " " + f",{space} ".join(parts) + space + end


def _filled(parts: list[str], depth: int) -> list[str]:
    """As many on a line as fit."""
    lines = [""]
    for part in parts:
        if lines[-1] and depth + len(lines[-1]) + len(part) + 4 > WIDTH:
            lines.append("")
        lines[-1] += f", {part}" if lines[-1] else part
    return lines


def _came(record: Any, place: str) -> str:
    """What stands at a place, if it can be followed: `acc.hits`, `keys[3]`."""
    for step in re.findall(r"[^.\[\]]+", place):
        try:
            record = record[int(step) if isinstance(record, list) else step]
        except (KeyError, IndexError, TypeError, ValueError):
            return ""
    return f", got {str(record)[:80]!r}" if isinstance(record, str) else f", got {str(record)[:80]}"
