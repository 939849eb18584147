"""The tensors that a graph names: of a network or of a file, and what each layer computes with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.errors import SettingError
from unbackdoor.findings.layers import Layer, LayerGraph
from unbackdoor.graph.modules import effective_weight, join
from unbackdoor.graph.read import layer_graph


class Tensors(Mapping[str, Tensor]):
    """The tensors of a network or of a file by name, and the weight that each layer computes with.

    Args:
        source: a module, or name -> tensor.
    """

    def __init__(self, source: nn.Module | Mapping[str, Tensor]) -> None:
        self.module = source if isinstance(source, nn.Module) else None
        if isinstance(source, nn.Module):
            self._tensors: Mapping[str, Tensor] = {
                join(path, name): tensor
                for path, module in source.named_modules(remove_duplicate=False)
                for name, tensor in (*module._parameters.items(), *module._buffers.items())
                if tensor is not None
            }
        else:
            self._tensors = source

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def weight(self, layer: Layer) -> Tensor | None:
        """What a forward pass multiplies with; None where only the module could compute it and there is none."""
        if layer.parametrization is None:
            return self._tensors[layer.weight].detach()
        if self.module is not None:
            return _computed_weight(self.module.get_submodule(layer.path))
        if layer.parametrization == "weight_norm" and layer.gain is not None:
            direction = self._tensors[layer.weight].detach()
            return torch._weight_norm(direction, self._tensors[layer.gain].detach(), 0)
        return None


def read_model(
    model: nn.Module | Mapping[str, Tensor], graph: LayerGraph | None = None, example: Any = None
) -> tuple[Tensors, LayerGraph]:
    """The tensors of a network and its layer graph, read now or given.

    Raises:
        SettingError: it is no network, bare tensors came without a graph, or the graph is another network's.
    """
    if not isinstance(model, (nn.Module, Mapping)):
        raise SettingError(f"expected a network (torch.nn.Module) or its tensors by name, got {type(model).__name__}")
    if graph is None:
        if not isinstance(model, nn.Module):
            raise SettingError("tensors without a network: give graph=, for example layer_graph of the architecture")
        return Tensors(model), layer_graph(model, example)
    if not isinstance(graph, LayerGraph):
        raise SettingError(
            f"graph: expected a LayerGraph, as layer_graph(model) returns it, got {type(graph).__name__}"
        )
    tensors = Tensors(model)
    for layer in graph.layers:
        computed = layer.parametrization == "other"  # from numbers of any shape
        rows = layer.out_channels // layer.groups if layer.transposed else layer.out_channels
        _check(tensors, layer.weight, size=None if computed else rows, dim=int(layer.transposed))
        _check(tensors, layer.bias, size=layer.out_channels)
        _check(tensors, layer.gain, size=None)
    for norm in graph.norms.values():
        for name in (norm.weight, norm.bias, norm.mean, norm.var, norm.gain):
            _check(tensors, name, size=norm.channels)
    return tensors, graph


def _check(tensors: Tensors, name: str | None, *, size: int | None, dim: int = 0) -> None:
    """SettingError unless a tensor that a graph names is there, with as many channels as the graph says."""
    if name is None:
        return
    if name not in tensors:
        raise SettingError(f"graph: names {name}, which this network does not have; give the graph of this network")
    shape = tensors[name].shape
    if size is not None and (len(shape) <= dim or shape[dim] != size):
        raise SettingError(
            f"graph: expects {size} channels in {name}, got shape {tuple(shape)}; give the graph of this network"
        )


def readable(tensors: Tensors, layer: Layer) -> str | None:
    """None if a layer can be scored, else the reason why not."""
    if layer.parametrization == "other" and tensors.module is None:
        return "its weight is computed by a parametrization; load it into the network to score it"
    weight = tensors[layer.weight]
    if weight.is_meta:
        return "it has no weights (they are on the meta device)"
    if weight.numel() == 0:
        return "its weight is empty"
    if weight.layout != torch.strided:
        return f"its weight is stored as {weight.layout}"
    if weight.is_quantized or not (weight.is_floating_point() and weight.element_size() > 1):
        return f"its weight is stored as {str(weight.dtype).removeprefix('torch.')}"
    return None


def _computed_weight(module: nn.Module) -> Tensor:
    """What parametrizations make of a weight in eval mode: in train mode spectral_norm would step its iteration."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            weight: Tensor = effective_weight(module)
    finally:
        for part, mode in modes:
            part.training = mode
    return weight.detach()
