"""A layout of torch's files, BackdoorBench's `attack_result.pt`: of what is in it, only the network is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What describes the network; `defense_result.pt` holds the same.
MODEL, MODEL_NAME, NUM_CLASSES = "model", "model_name", "num_classes"

#: What tells an attack's result from any other file.
_DATA = ("clean_data", "bd_train", "bd_test")


def network_part(content: Any) -> dict[str, Any] | None:
    """The entries of an attack's result that describe the network, or None for any other content."""
    if not isinstance(content, dict) or not any(name in content for name in _DATA):
        return None
    if not isinstance(content.get(MODEL_NAME), str) or type(content.get(NUM_CLASSES)) is not int:
        return None
    return {name: content[name] for name in (MODEL_NAME, NUM_CLASSES, MODEL)} if MODEL in content else None


def network_named(content: Any) -> tuple[str, int] | None:
    """The network's name and its classes, where a file's content says them."""
    entries = content if isinstance(content, Mapping) else {}
    name, classes = entries.get(MODEL_NAME), entries.get(NUM_CLASSES)
    return (name, classes) if isinstance(name, str) and type(classes) is int else None
