"""Dataflow in a form that every tracer can produce, and the one rule that reads pairs off it.

A layer and a norm are a pair if and only if the norm alone reads what the layer puts out, at every call, and reads
nothing else, at every call, channel for channel. Everything else is no pair, and said so.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from unbackdoor.graph.layer import Layer, LayerGraph, Norm
from unbackdoor.report import Remark

Kind = Literal["input", "layer", "norm", "input_norm", "alias", "shape", "other", "output"]


@dataclass(frozen=True)
class Op:
    """One call.

    Attributes:
        kind: "alias" hands its first input on unchanged; "shape" reads sizes, not values; "input_norm" is a norm whose
            factor depends on its input.
        inputs: the numbers of the ops whose results it reads.
        path: of the layer or norm; for "input_norm" the type's name.
    """

    kind: Kind
    inputs: tuple[int, ...] = ()
    path: str = ""


@dataclass
class Dataflow:
    """What a tracer saw, in the order of the calls.

    Attributes:
        rule: the tracer.
        blind: whether something was refused that another tracer might see.
    """

    rule: str
    ops: list[Op] = field(default_factory=list)
    layers: dict[str, Layer] = field(default_factory=dict)
    norms: dict[str, Norm] = field(default_factory=dict)
    uncovered: dict[str, Remark] = field(default_factory=dict)
    blind: bool = False

    def add(self, kind: Kind, inputs: tuple[int, ...] = (), path: str = "") -> int:
        """Append a call; returns its number."""
        self.ops.append(Op(kind, inputs, path))
        return len(self.ops) - 1

    def refuse(self, path: str, kind: str, reason: str) -> None:
        """Note a layer or norm that cannot be read; the first reason stands."""
        self.uncovered.setdefault(path, Remark(path, kind, reason))

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
        paired = {layer.norm for layer in layers}
        unpaired = tuple(path for path in self.norms if path in calls and path not in paired)
        outputs = self._outputs()
        return LayerGraph(
            layers=tuple(layers),
            norms=self.norms,
            unpaired_norms=unpaired,
            classifier=outputs[0] if len(outputs) == 1 else None,
            outputs=outputs,
            uncovered=tuple(self.uncovered.values()),
            aside=aside,
            aliases=aliases,
        )

    def _pair(self, layer: Layer, calls: Mapping[str, list[int]], readers: Mapping[int, list[Op]]) -> Layer | None:
        """The layer with its norm, if it has one; None (and a refusal) if its scale means nothing by itself."""
        own = calls[layer.path]
        consumers = [op for call in own for op in readers.get(call, [])]
        norms = {op.path for op in consumers if op.kind == "norm"}
        if not norms:
            changing = {op.path for op in consumers if op.kind == "input_norm"}
            if changing and all(op.kind == "input_norm" for op in consumers):
                kind = " and ".join(sorted(changing))
                note = f"read by {kind} alone, which cannot be folded in: scored without it"
                return dataclasses.replace(layer, note=note)
            return layer
        alone = all(op.kind == "norm" for op in consumers)
        if alone and len(norms) == 1:
            (norm,) = norms
            fed = {self.root(i) for call in calls[norm] for i in self.ops[call].inputs}
            if fed <= set(own) and self.norms[norm].channels == layer.out_channels:
                return dataclasses.replace(layer, norm=norm)
        if self.norms[min(norms)].channels != layer.out_channels:
            return layer  # the norm works along another axis
        if alone:  # any scale of such a layer is undone behind it, so that its own norm says nothing
            which = ", ".join(sorted(norms))
            self.refuse(
                layer.path, layer.kind, f"only norms read it, but it is not the only layer they normalise: {which}"
            )
            return None
        note = f"{', '.join(sorted(norms))} reads it, and something else does too: scored without the norm"
        return dataclasses.replace(layer, note=note)

    def _outputs(self) -> tuple[str, ...]:
        """The layers whose result reaches the output past no other layer and no norm.

        Each value that the network puts out is looked at by itself: feature maps beside the answer hide nothing.
        """
        values = dict.fromkeys(i for op in self.ops if op.kind == "output" for i in op.inputs)
        found = {path for value in values for path in self._heads(value)}
        return tuple(path for path in self.layers if path in found)

    def _heads(self, value: int) -> set[str]:
        """The layers that put out one value; none if a norm is among what does.

        Where several do, they count only if all are Linear (several heads): a network that ends in a sum of feature
        maps has no classifier.
        """
        found: set[str] = set()
        seen: set[int] = set()
        stack = [value]
        while stack:
            number = stack.pop()
            if number in seen:
                continue
            seen.add(number)
            op = self.ops[number]
            if op.kind == "layer":
                found.add(op.path)
            elif op.kind in ("alias", "other"):
                stack.extend(op.inputs)
            elif op.kind in ("norm", "input_norm"):
                return set()
        if len(found) > 1 and any(self.layers[path].kind != "Linear" for path in found):
            return set()
        return found
