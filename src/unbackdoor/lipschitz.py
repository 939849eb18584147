"""One Lipschitz constant an output channel, from the weights alone.

A channel of a convolution is a dot product of its filter w_j with a patch x, so |f_j(x) - f_j(x')| <= |w_j| |x - x'|,
with equality possible: its constant is |w_j|_2 exactly (LPP, Sec. 3.3). A BatchNorm behind it multiplies by
gamma_j / sqrt(var_j + eps) at test time and shifts; folding that factor in gives the constant of the pair.

CLP (Zheng et al., ECCV 2022) takes the largest singular value of the filter reshaped to (c_in, k*k) instead:
sigma <= |w_j|_2 <= sqrt(min(c_in, k*k)) sigma, and the two agree on 1x1 convolutions and Linear layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from unbackdoor.errors import SettingError
from unbackdoor.graph import Layer, LayerGraph, Norm, layer_graph
from unbackdoor.graph.modules import effective_weight, join

NormKind = Literal["l2", "l2sq", "spectral"]
NormFactor = Literal["folded", "no_eps", "printed", "printed_signed", "none"]


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

    def __iter__(self):  # type: ignore[no-untyped-def]
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


def filters(weight: Tensor, layer: Layer) -> Tensor:
    """(C_out, fan-in channels, kernel positions): one matrix an output channel.

    Args:
        weight: (C_out, C_in / groups, *kernel), or (C_in, C_out / groups, *kernel) if transposed.
        layer: says which.
    """
    if layer.transposed:
        c_in, c_out = weight.shape[:2]
        grouped = weight.reshape(layer.groups, c_in // layer.groups, c_out, -1)
        return grouped.transpose(1, 2).reshape(layer.groups * c_out, c_in // layer.groups, -1)
    return weight.reshape(len(weight), -1, 1) if weight.ndim == 2 else weight.flatten(2)


def l2_norms(weight: Tensor, layer: Layer) -> Tensor:
    """(C_out,): |w_j|_2, the constant of LPP."""
    if layer.transposed:
        weight = filters(weight, layer)
    length: Tensor = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)))  # any memory format, in place
    return length


def spectral_norms(weight: Tensor, layer: Layer) -> Tensor:
    """(C_out,): the largest singular value of each (c_in, k*k) filter, the constant of CLP, exactly.

    The root of the largest eigenvalue of the smaller Gram matrix, all filters at once.
    """
    matrices = filters(weight, layer)
    if min(matrices.shape[1:]) == 1:
        return l2_norms(weight, layer)
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mT
    gram = matrices @ matrices.mT
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)
    broken = ~torch.isfinite(trace)  # the solver would refuse them all
    if broken.any():
        gram = gram.masked_fill(broken[:, None, None], 0)
    largest: Tensor = torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0).sqrt()
    return torch.where(broken, trace, largest)


_MEASURES: dict[str, Callable[[Tensor, Layer], Tensor]] = {
    "l2": l2_norms,
    "l2sq": l2_norms,  # squared in double precision, behind the folding
    "spectral": spectral_norms,
}

#: Outside of these the squares of a constant's parts may leave the range of float32.
_SMALLEST, _LARGEST = 1e-15, 1e15


def constants_of(weights: Sequence[Tensor], layers: Sequence[Layer], norm: NormKind) -> Tensor:
    """The constants of several layers before folding, one behind the other, float64 on the CPU.

    Args:
        weights, layers: what each layer computes with.
        norm: "l2sq" is taken for "l2" here.
    """
    measure = _MEASURES[norm]
    parts = [measure(_computable(weight), layer) for weight, layer in zip(weights, layers, strict=True)]
    flat = _together(parts)
    if _in_range(flat):
        return flat
    for index, (weight, layer) in enumerate(zip(weights, layers, strict=True)):
        if not _in_range(parts[index]):
            parts[index] = _measure_scaled(measure, weight, layer)
    return _together(parts)


def _in_range(constants: Tensor) -> bool:
    smallest, largest = constants.aminmax()  # NaN if there is one
    return bool((smallest > _SMALLEST) & (largest < _LARGEST))


def _measure_scaled(measure: Callable[[Tensor, Layer], Tensor], weight: Tensor, layer: Layer) -> Tensor:
    """The same for any magnitude: in double precision, and each filter divided by its largest number before."""
    matrices = filters(weight.to("cpu", torch.float64), layer)
    largest = matrices.abs().amax((1, 2))
    unit = torch.where(torch.isfinite(largest) & (largest > 0), largest, 1)
    return measure(matrices / unit[:, None, None], dataclasses.replace(layer, transposed=False)) * unit


def fold_factors(gamma: Tensor, var: Tensor, eps: Tensor, factor: NormFactor) -> Tensor:
    """(C,): what a BatchNorm multiplies its channels with.

    "folded" is |gamma| / sqrt(var + eps), the factor that the network applies. "no_eps" leaves eps out, as CLP's
    published code does, and is infinite at var = 0. "printed_signed" is sqrt(var) / gamma, LPP's paper to the letter:
    the reciprocal of the right one, under which rescaling a convolution changes its score by the square, and negative
    where gamma is. "printed" is its size, sqrt(var) / |gamma|.
    """
    if factor == "none":
        return torch.ones_like(gamma)
    if factor in ("printed", "printed_signed"):
        return var.sqrt() / (gamma.abs() if factor == "printed" else gamma)
    return gamma.abs() / ((var + eps).sqrt() if factor == "folded" else var.sqrt())


def scores_of(
    tensors: Tensors, layers: Sequence[Layer], graph: LayerGraph, *, norm: NormKind, factor: NormFactor
) -> list[Tensor]:
    """The constants of several layers, (C_out,) each, float64 on the CPU.

    Every weight is read once; folding is done for all layers at once, since small operations cost more than their
    arithmetic.

    Raises:
        SettingError: the norm or the factor is unknown.
    """
    if norm not in _MEASURES:
        raise SettingError(f"norm: expected one of {', '.join(_MEASURES)}, got {norm!r}")
    if factor not in get_args(NormFactor):
        raise SettingError(f"norm_factor: expected one of {', '.join(get_args(NormFactor))}, got {factor!r}")
    if not layers:
        return []
    flat = constants_of([_weight(tensors, layer) for layer in layers], layers, norm)
    sizes = [layer.out_channels for layer in layers]
    norms = [graph.norms[layer.norm] for layer in layers if layer.norm is not None]
    if norms:
        gamma = _together([_gamma(tensors, norm) for norm in norms])
        var = _together([tensors[norm.var].detach() for norm in norms])
        eps = torch.tensor(norms[0].eps, dtype=torch.float64)
        if any(norm.eps != norms[0].eps for norm in norms):
            eps = torch.from_numpy(np.repeat([norm.eps for norm in norms], [norm.channels for norm in norms]))
        factors = fold_factors(gamma, var, eps, factor)
        if len(norms) < len(layers):
            folded = iter(torch.split(factors, [norm.channels for norm in norms]))
            ones = torch.ones(max(sizes), dtype=torch.float64)
            factors = torch.cat(
                [next(folded) if layer.norm is not None else ones[: layer.out_channels] for layer in layers]
            )
        flat = flat * factors
    if norm == "l2sq":
        flat = flat**2
    return list(torch.split(_mark_broken(flat, tensors, layers, graph), sizes))


def _mark_broken(flat: Tensor, tensors: Tensors, layers: Sequence[Layer], graph: LayerGraph) -> Tensor:
    """NaN for channels that add something that is not a finite number, as no factor would tell."""
    places: list[tuple[int, Tensor]] = []
    start = 0
    for layer in layers:
        norm = graph.norms[layer.norm] if layer.norm is not None else None
        names = (layer.bias,) if norm is None else (layer.bias, norm.mean, norm.bias)
        places += [(start, tensors[name].detach()) for name in names if name is not None]
        start += layer.out_channels
    if places and not torch.isfinite(_together([shift for _, shift in places])).all():
        for start, shift in places:
            flat[start : start + len(shift)][~torch.isfinite(shift).cpu()] = torch.nan
    return flat


def channel_lipschitz(
    model: nn.Module | Mapping[str, Tensor],
    *,
    graph: LayerGraph | None = None,
    example: Any = None,
    norm: NormKind = "l2",
    factor: NormFactor = "folded",
) -> dict[str, Tensor]:
    """One constant an output channel, for every layer that can be read.

    Args:
        model: a network, or the tensors of one by name (then `graph` is needed).
        graph: its layer graph, if it has been read already.
        example: what the network takes, where its layers cannot be read without (see `layer_graph`); not looked at
            beside a `graph`.
        norm: "l2" (LPP), "l2sq" its square, "spectral" (CLP).
        factor: how the BatchNorm enters (see `fold_factors`).

    Returns:
        Layer path -> (C_out,) float64 on the CPU. A score that is not finite says that the channel's weights or
        statistics are broken.
    """
    tensors, graph = read_model(model, graph, example)
    layers = [layer for layer in graph.layers if readable(tensors, layer) is None]
    return dict(
        zip(
            (layer.path for layer in layers),
            scores_of(tensors, layers, graph, norm=norm, factor=factor),
            strict=True,
        )
    )


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
        return "it has no weights (meta device)"
    if weight.numel() == 0:
        return "it has no weights (a size is zero)"
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


def _weight(tensors: Tensors, layer: Layer) -> Tensor:
    weight = tensors.weight(layer)
    assert weight is not None, f"{layer.path}: scored without asking whether it is readable"
    return weight


def _computable(weight: Tensor) -> Tensor:
    """Half precision is computed in float32."""
    return weight.float() if weight.element_size() < 4 else weight


def _together(parts: Sequence[Tensor]) -> Tensor:
    """One float64 vector on the CPU, in one transfer."""
    first = parts[0]
    if all(part.dtype == first.dtype and part.device == first.device for part in parts):
        return torch.cat(list(parts)).to("cpu", torch.float64)
    return torch.cat([part.to("cpu", torch.float64) for part in parts])


def _gamma(tensors: Tensors, norm: Norm) -> Tensor:
    if norm.weight is None:
        return torch.ones_like(tensors[norm.var])
    gamma = tensors[norm.weight].detach()
    return gamma if norm.gain is None else gamma * tensors[norm.gain].detach()
