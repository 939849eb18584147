"""BackdoorBench's `attack_result.pt`, a torch file of which only the network is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The entries that describe the network; `defense_result.pt` has the same.
MODEL, MODEL_NAME, NUM_CLASSES = "model", "model_name", "num_classes"

#: Entries by which an attack's result is recognised.
_DATA = ("clean_data", "bd_train", "bd_test")


def network_part(content: Any) -> dict[str, Any] | None:
    """The entries of an attack's result that describe the network, or None for any other content."""
    if not isinstance(content, dict) or not any(name in content for name in _DATA):
        return None
    if not isinstance(content.get(MODEL_NAME), str) or type(content.get(NUM_CLASSES)) is not int:
        return None
    return {name: content[name] for name in (MODEL_NAME, NUM_CLASSES, MODEL)} if MODEL in content else None


def data_named(content: Any) -> str | None:
    """The name of the data set that an attack's result was trained on, if the content holds it."""
    name = content.get(_DATA[0]) if isinstance(content, Mapping) else None
    return name if isinstance(name, str) else None


def network_named(content: Any) -> tuple[str, int] | None:
    """The network's name and its number of classes, if the content holds them."""
    entries = content if isinstance(content, Mapping) else {}
    name, classes = entries.get(MODEL_NAME), entries.get(NUM_CLASSES)
    return (name, classes) if isinstance(name, str) and type(classes) is int else None
