"""Which layers of a network are scored, which cannot be read, and which are left alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from unbackdoor.findings import Remark
from unbackdoor.findings.layers import Layer, LayerGraph, why_left
from unbackdoor.graph.tensors import Tensors, readable


def eligible(
    tensors: Tensors, graph: LayerGraph, refuse: Callable[[Layer, Tensor], str | None]
) -> tuple[list[Layer], list[Remark], list[Remark]]:
    """Sort the layers of a graph.

    Args:
        tensors: of the network.
        graph: its layers.
        refuse: a method's own reason to leave a layer (and its weight) alone, or None.

    Returns:
        The layers to score, what cannot be read, and what is left alone.
    """
    layers: list[Layer] = []
    not_covered, left_alone = list(graph.uncovered), list(graph.aside)
    seen: dict[str, str] = {}
    for layer in graph.layers:
        unreadable = readable(tensors, layer)
        if unreadable is not None:
            not_covered.append(Remark(layer.path, layer.kind, unreadable))
            continue
        reason = refuse(layer, tensors[layer.weight])
        if layer.path in graph.outputs and layer.part != "answer":  # as a graph made by hand may say it
            layer = dataclasses.replace(layer, part="answer")
        if layer.part == "answer":
            reason = why_left(layer)
        elif layer.part not in ("hidden", "unknown"):
            reason = reason or why_left(layer)
        elif layer.tied and layer.norm is None and reason is None:
            names = (layer.weight, *graph.aliases.get(layer.weight, ()))
            first = next((seen[name] for name in names if name in seen), None)
            seen[layer.weight] = first or layer.path
            reason = f"shares its weight with {first} and is scored there" if first else None
        if reason is None:
            layers.append(layer)
            if layer.part == "unknown":  # scored, for a reader; not edited
                not_covered.append(Remark(layer.path, layer.kind, layer.why))
        else:
            left_alone.append(Remark(layer.path, layer.kind, reason))
    return layers, not_covered, left_alone
