"""Dataflow in a form that every tracer can produce, and the one rule that reads pairs off it.

A layer and a norm are a pair if and only if the norm alone reads what the layer puts out, at every call, and reads
nothing else, at every call, channel for channel. Everything else is no pair, and said so.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from unbackdoor.dataflow.effects import NO_EFFECT, Effect
from unbackdoor.dataflow.ops import Kind, Op
from unbackdoor.dataflow.parts import Parts, Verdict
from unbackdoor.dataflow.places import Place
from unbackdoor.findings import Remark
from unbackdoor.findings.layers import Layer, LayerGraph, Norm

_Known = TypeVar("_Known", Layer, Norm)

_BEHIND = "a norm stands behind its activation, and is part of its score"
_PUT_OUT = "the network also returns its result, so channels pruned here are zero in that output too"


@dataclass
class Dataflow:
    """What a tracer saw, in the order of the calls.

    Attributes:
        rule: the tracer.
        doubts: layers that run inside something that cannot be looked into, and what it is.
        blind: whether something was refused that another tracer might see.
    """

    rule: str
    ops: list[Op] = field(default_factory=list)
    layers: dict[str, Layer] = field(default_factory=dict)
    norms: dict[str, Norm] = field(default_factory=dict)
    uncovered: dict[str, Remark] = field(default_factory=dict)
    doubts: dict[str, str] = field(default_factory=dict)
    blind: bool = False

    def add(self, kind: Kind, inputs: tuple[int, ...] = (), path: str = "", effect: Effect = NO_EFFECT) -> int:
        """Append a call; returns its number."""
        self.ops.append(Op(kind, inputs, path, effect))
        return len(self.ops) - 1

    def join(self, inputs: tuple[int, ...]) -> int:
        """Append a value that is made of parts of others."""
        return self.add("other", inputs, effect=Effect("cat", tuple((i, "zero") for i in inputs if self.varies(i))))

    def refuse(self, path: str, kind: str, reason: str) -> None:
        """Note a layer or norm that cannot be read; the first reason stands."""
        self.uncovered.setdefault(path, Remark(path, kind, reason))

    def varies(self, number: int) -> bool:
        """Whether op `number` puts out values that depend on the input's, and no mere sizes or constants."""
        return self.ops[number].kind != "shape"

    def place(self, number: int) -> Place | None:
        """Along which axis of op `number`'s result channels lie, where that is known."""
        op = self.ops[number]
        if op.kind in ("norm", "input_norm", "own_norm", "alias") and op.inputs:
            return self.place(op.inputs[0])
        return op.effect.place

    def source(self, number: int) -> Layer | None:
        """The layer whose result op `number` hands on, if it is a layer's."""
        op = self.ops[self.root(number)]
        return self.layers[op.path] if op.kind == "layer" else None

    def root(self, number: int) -> int:
        """The op whose result op `number` hands on."""
        while self.ops[number].kind == "alias":
            number = self.ops[number].inputs[0]
        return number

    def graph(self, aliases: Mapping[str, tuple[str, ...]], aside: tuple[Remark, ...] = ()) -> LayerGraph:
        """Read the pairs off."""
        calls: dict[str, list[int]] = defaultdict(list)  # layer or norm -> its calls
        readers: dict[int, list[Op]] = defaultdict(list)  # call -> who reads its result
        for number, op in enumerate(self.ops):
            if op.kind in ("layer", "norm"):
                calls[op.path].append(number)
            if op.kind not in ("alias", "shape"):
                for source in {self.root(i) for i in op.inputs}:
                    readers[source].append(op)
        layers: list[Layer] = []
        for path in dict.fromkeys(op.path for op in self.ops if op.kind == "layer"):
            if path not in self.uncovered:
                layer = self._pair(self.layers[path], calls, readers)
                if layer is not None:
                    layers.append(layer)
        pairs = {layer.path: layer.norm for layer in layers if layer.norm is not None}
        parts = Parts(self.ops, pairs, layers=self.layers, doubts=self.doubts)
        layers = [_with_part(layer, parts.of_layer(layer.path)) for layer in layers]
        layers = [_noted(layer, _PUT_OUT) if parts.is_put_out(layer) else layer for layer in layers]
        layers = [self._with_norms_behind(layer, calls, parts) for layer in layers]
        norms = {layer.norm: layer for layer in layers if layer.norm is not None}
        taken = {*norms, *(path for layer in layers for path in layer.behind)}
        unpaired = tuple(path for path in self.norms if path in calls and path not in taken)
        outputs = tuple(layer.path for layer in layers if layer.part == "answer")
        alone = len(outputs) == 1 and outputs[0] not in pairs and not parts.doubted
        no_classes = parts.no_classes(outputs[0]) if alone else None
        return LayerGraph(
            layers=tuple(layers),
            norms={
                path: _with_part(norm, norms.get(path) or parts.of_norm(path)) if path in calls else norm
                for path, norm in self.norms.items()
            },
            unpaired_norms=unpaired,
            classifier=outputs[0] if alone and no_classes is None else None,
            no_classes=no_classes or "",
            outputs=outputs,
            uncovered=tuple(self.uncovered.values()),
            aside=aside,
            aliases=aliases,
        )

    def _with_norms_behind(self, layer: Layer, calls: Mapping[str, list[int]], parts: Parts) -> Layer:
        """A hidden convolution, with the norms that stand behind its activation and later ones."""
        if layer.part != "hidden" or not layer.kind.lower().startswith("conv"):
            return layer
        place, behind, last = self.place(calls[layer.path][0]), list[str](), layer.norm or layer.path
        while (path := parts.norm_behind(last)) is not None:
            norm = self.norms[path]
            along = all(self.place(self.ops[call].inputs[0]) == place for call in calls[path])
            if norm.weight is None or not along or norm.channels != layer.out_channels:
                break
            if parts.of_norm(path).part != "hidden":
                break
            behind.append(path)
            last = path
        if not behind:
            return layer
        return _noted(dataclasses.replace(layer, behind=tuple(behind)), _BEHIND)

    def _pair(self, layer: Layer, calls: Mapping[str, list[int]], readers: Mapping[int, list[Op]]) -> Layer | None:
        """The layer with its norm, if it has one; None (and a refusal) if its scale means nothing by itself."""
        results = calls[layer.path]
        consumers = [op for call in results for op in readers.get(call, [])]
        norms = {op.path for op in consumers if op.kind == "norm"}
        if not norms:
            changing = {op.path for op in consumers if op.kind in ("input_norm", "own_norm")}
            if changing and all(op.kind in ("input_norm", "own_norm") for op in consumers):
                kind = " and ".join(sorted(changing))
                note = f"only {kind} reads it, which the score cannot include"
                return dataclasses.replace(layer, note=note)
            return layer
        alone = all(op.kind == "norm" for op in consumers)
        if alone and len(norms) == 1:
            (norm,) = norms
            fed = {self.root(i) for call in calls[norm] for i in self.ops[call].inputs}
            if fed <= set(results) and self.norms[norm].channels == layer.out_channels:
                return dataclasses.replace(layer, norm=norm)
        if self.norms[min(norms)].channels != layer.out_channels:
            return layer  # the norm works along another axis
        if alone:  # any scale of such a layer is undone behind it, so that its own norm says nothing
            which = ", ".join(sorted(norms))
            self.refuse(layer.path, layer.kind, f"only norms read it, and they also normalise other layers: {which}")
            return None
        note = f"not only its norm ({', '.join(sorted(norms))}) reads it, so the score leaves the norm out"
        return dataclasses.replace(layer, note=note)


def _noted(layer: Layer, note: str) -> Layer:
    return dataclasses.replace(layer, note="; ".join(filter(None, (layer.note, note))))


def _with_part(what: _Known, found: Layer | Verdict) -> _Known:
    return what if found.part == "hidden" else dataclasses.replace(what, part=found.part, why=found.why)
