"""What all findings share: numbers as JSON can hold them, and the way to a renderer."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

#: What must be said wherever nothing was found.
NO_PROOF = "This does not prove that the model has no backdoor."


def finite(value: float | None) -> float | None:
    """A number as JSON can hold it; None if it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def plain(value: Any) -> Any:
    """Records as dicts, tuples as lists, and numbers that are not finite as None: what JSON can hold."""
    if dataclasses.is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A limit that is switched off is infinite: it becomes the word "inf" or "-inf", so that it is not lost."""
    infinite = {math.inf: "inf", -math.inf: "-inf"}
    return {
        key: infinite[value] if isinstance(value, float) and math.isinf(value) else plain(value)
        for key, value in settings.items()
    }


def as_json(value: Any) -> str:
    """Plain values as JSON; equal values give equal bytes."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=True) + "\n"


#: (a finding, a form) -> text. Values know no renderer: the package's front door puts one here.
Renderer = Callable[[object, str], str]
_renderers: list[Renderer] = []


def render_with(renderer: Renderer) -> None:
    """From here on findings are shown by `renderer`."""
    _renderers[:] = [renderer]


def rendered(found: object, form: str) -> str:
    """A finding for a reader."""
    (renderer,) = _renderers
    return renderer(found, form)
