"""Selection -> edits: how a channel is switched off or shrunk, tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.errors import MethodError
from unbackdoor.findings import Remark
from unbackdoor.findings.layers import Layer, LayerGraph, Norm
from unbackdoor.graph.tensors import Tensors
from unbackdoor.prune.outliers import Mask, Selection


@dataclass(frozen=True)
class Edit:
    """New content for some places of one tensor.

    Attributes:
        name: of the tensor.
        index: what stands between the brackets of `tensor[...]`.
        before, after: the content there, in the tensor's dtype.
    """

    name: str
    index: tuple[Any, ...]
    before: Tensor
    after: Tensor


class Editor:
    """Turns selections into edits, and says what it had to leave alone.

    Args:
        tensors: of the network.
        graph: its layers.
        scale: "gamma" scales through the norm's weight, "weight" through the filter.
        beta: "zero" makes a pruned channel zero; "keep" leaves it the constant beta of its norm.
    """

    def __init__(self, tensors: Tensors, graph: LayerGraph, scale: str = "gamma", beta: str = "zero") -> None:
        self.tensors = tensors
        self.graph = graph
        self.scale = scale
        self.beta = beta
        self.edits: list[Edit] = []
        self.left_alone: list[Remark] = []
        self._shared = shared(graph) if graph.aliases else frozenset()

    def layer(self, selection: Selection) -> Selection:
        """Prune and shrink the channels of one layer; where its tensors cannot carry that, say so in the selection."""
        pruned, near = selection.pruned, selection.near
        prunes, shrinks = bool(pruned.any()), bool(near.any())
        if not prunes and not shrinks:
            return selection
        layer = selection.layer
        norms = self.graph.norms_of(layer)
        scaled, broken = self.scale == "weight" and bool(near.any()), bool(selection.broken.any())
        reason = self._immutable(layer, norms, filters=scaled or broken)
        if reason is not None:
            if layer.part != "unknown":  # those are listed already: they are not covered
                self.left_alone.append(Remark(selection.path, layer.kind, f"its outliers cannot be pruned: {reason}"))
            return dataclasses.replace(selection, immutable=True)
        if prunes:
            self._prune(layer, norms, _numbers(pruned, selection.start), _numbers(selection.broken, selection.start))
        if shrinks:
            self._shrink(layer, norms, _numbers(near, selection.start), torch.from_numpy(selection.factors[near]))
        return selection

    def off(self, layer: Layer, channel: int) -> str | None:
        """Prune one channel of a layer; where its tensors cannot carry that, why."""
        norms = self.graph.norms_of(layer)
        reason = self._immutable(layer, norms, filters=False)
        if reason is None:
            index = torch.tensor([channel])
            self._prune(layer, norms, index, index[:0])
        return reason

    def zero(self, name: str, index: tuple[Any, ...]) -> None:
        """Set some places of a tensor to zero."""
        self._add(name, index, lambda before: torch.zeros_like(before))

    def _immutable(self, layer: Layer, norms: Sequence[Norm], *, filters: bool) -> str | None:
        """Why tensors that would have to change cannot, or must not, if so.

        Args:
            layer, norms: the layer, and the norms behind it.
            filters: whether filters change even if there is a norm with a gamma.
        """
        if layer.part != "hidden":
            return layer.why or "its channels are not hidden channels"
        tensors = [layer.bias, *(name for norm in norms for name in (norm.weight, norm.bias, norm.mean, norm.var))]
        if self._shared.intersection(tensors):
            return "its bias or norm is shared with another layer"
        if any(norm.weight is not None for norm in norms) and not filters:
            return None
        if layer.parametrization == "other" or (layer.parametrization == "weight_norm" and layer.transposed):
            return "its weight or bias is computed by a parametrization that couples its channels"
        if layer.tied:
            return "its weight is shared with another layer"
        return None

    def _prune(self, layer: Layer, norms: Sequence[Norm], channels: Tensor, broken: Tensor) -> None:
        """The channel's output becomes zero for every input (or its norm's beta, where that is kept).

        So does the result of each norm behind an activation, which would make (f(0) - mean) gamma / std + beta of a
        zero: often further from its mean than anything that the channel puts out.
        """
        filters = channels
        for norm in norms:
            for name in (norm.weight, norm.bias if self.beta == "zero" else None):
                if name is not None:
                    self.zero(name, (channels,))
            if norm.weight is not None:
                filters = broken  # NaN times zero is NaN: there the filter goes too
        if not len(filters):
            return
        self._filter(layer, filters, None)
        if layer.parametrization == "weight_norm" and len(broken):  # v / |v| must be a number
            self._one(layer.weight, broken)
        if layer.bias is not None:
            self.zero(layer.bias, (filters,))
        for norm in norms:
            self.zero(norm.mean, (filters,))  # (0 - 0) / sqrt(var + eps) = 0
            if len(broken):
                self._one(norm.var, broken)

    def _shrink(self, layer: Layer, norms: Sequence[Norm], channels: Tensor, factors: Tensor) -> None:
        """Multiply the slope of channels with factors."""
        gamma = next((norm.weight for norm in norms if norm.weight is not None), None)
        if gamma is not None and self.scale == "gamma":
            # Same slope as scaling the filter, and no shift: at the running mean the output stays beta.
            self._scale(gamma, (channels,), factors)
            return
        self._filter(layer, channels, factors)
        if norms and self.scale == "gamma":  # no gamma: filter, bias and running mean together
            self._scale(norms[0].mean, (channels,), factors)
            if layer.bias is not None:
                self._scale(layer.bias, (channels,), factors)

    def _filter(self, layer: Layer, channels: Tensor, factors: Tensor | None) -> None:
        """Zero some filters, or multiply them with factors."""
        index: tuple[Any, ...] = (channels,)
        name = layer.weight
        if layer.parametrization == "weight_norm" and layer.gain is not None:
            name = layer.gain
        elif layer.transposed:  # (C_in, C_out / groups, ...): channel j of group g is column j of g's rows
            c_in, c_out = self.tensors[name].shape[:2]
            rows = torch.arange(c_in).view(layer.groups, -1)[channels // c_out]
            index = (rows, (channels % c_out)[:, None])
        if factors is None:
            self.zero(name, index)
        else:
            self._scale(name, index, factors)

    def _scale(self, name: str, index: tuple[Any, ...], factors: Tensor) -> None:
        def scaled(before: Tensor) -> Tensor:
            shape = (-1,) + (1,) * (before.ndim - 1)
            wide = before.to("cpu", torch.float64) * factors.view(shape)
            most = torch.finfo(before.dtype).max  # enlarging must not make a number infinite
            return wide.clamp(-most, most).to(before.device, before.dtype)

        self._add(name, index, scaled)

    def _one(self, name: str, channels: Tensor) -> None:
        self._add(name, (channels,), lambda before: torch.ones_like(before))

    def _add(self, name: str, index: tuple[Any, ...], change: Any) -> None:
        before = self.tensors[name].detach()[index]  # a copy
        self.edits.append(Edit(name, index, before, change(before)))


def rewritten(network: nn.Module, work: nn.Module, *, method: str) -> tuple[Edit, ...]:
    """The edits that give a network the weights of its working copy, in the network's own precision.

    Args:
        network: the original.
        work: a copy of it, in any precision, whose parameters and buffers were changed.
        method: which changed them, for the message.

    Raises:
        MethodError: a tensor that was all finite numbers would no longer be.
    """
    new, edits = Tensors(work), []
    done: set[int] = set()
    for name, tensor in Tensors(network).items():
        module, _, attribute = name.rpartition(".")
        if id(tensor) in done or attribute in network.get_submodule(module)._non_persistent_buffers_set:
            continue
        done.add(id(tensor))
        before = tensor.detach()
        after = torch.empty_like(before).copy_(new[name].detach())
        if same_bits(before, after):
            continue
        if after.is_floating_point() and not torch.isfinite(after).all() and torch.isfinite(before).all():
            raise MethodError(
                f"{method}: training diverged: {name} would hold numbers that are not finite; try a smaller lr"
            )
        edits.append(Edit(name, (), before.clone(), after))
    return tuple(edits)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same content, bit for bit."""
    if a.shape != b.shape or a.dtype != b.dtype or a.is_meta:
        return False
    a, b = a.reshape(-1), b.to(a.device).reshape(-1)
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def shared(graph: LayerGraph) -> frozenset[str | None]:
    """Biases and norm tensors that more than one layer or norm uses."""
    users: dict[str, set[str]] = defaultdict(set)
    owned: list[tuple[str, tuple[str | None, ...]]] = [(layer.path, (layer.bias,)) for layer in graph.layers]
    owned += [(norm.path, (norm.weight, norm.bias, norm.mean, norm.var)) for norm in graph.norms.values()]
    for path, names in owned:
        for name in names:
            for same in () if name is None else (name, *graph.aliases.get(name, ())):
                users[same].add(path)
    return frozenset(name for name, paths in users.items() if len(paths) > 1)


def _numbers(mask: Mask, offset: int) -> Tensor:
    return torch.from_numpy(mask.nonzero()[0] + offset)
