"""One Lipschitz constant an output channel, for every layer of a network: its tensors read, `lipschitz` applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from unbackdoor.errors import SettingError
from unbackdoor.findings.layers import Layer, LayerGraph, Norm
from unbackdoor.graph.tensors import Tensors, read_model, readable
from unbackdoor.lipschitz import MEASURES, NormFactor, NormKind, constants_of, fold_factors, together


def scores_of(
    tensors: Tensors, layers: Sequence[Layer], graph: LayerGraph, *, norm: NormKind, factor: NormFactor
) -> list[Tensor]:
    """The constants of several layers, (C_out,) each, float64 on the CPU.

    Every weight is read once; folding is done for all layers at once, since small operations cost more than their
    arithmetic.

    Raises:
        SettingError: the norm or the factor is unknown.
    """
    if norm not in MEASURES:
        raise SettingError(f"norm: expected one of {', '.join(MEASURES)}, got {norm!r}")
    if factor not in get_args(NormFactor):
        raise SettingError(f"norm_factor: expected one of {', '.join(get_args(NormFactor))}, got {factor!r}")
    if not layers:
        return []
    flat = constants_of([_weight(tensors, layer) for layer in layers], layers, norm)
    sizes = [layer.out_channels for layer in layers]
    parts = zip(layers, torch.split(flat, sizes), strict=True)
    placed = [(part, one) for layer, part in parts for one in graph.norms_of(layer)]
    if placed:
        norms = [one for _, one in placed]
        gamma = together([_gamma(tensors, one) for one in norms])
        var = together([tensors[one.var].detach() for one in norms])
        eps = torch.tensor(norms[0].eps, dtype=torch.float64)
        if any(one.eps != norms[0].eps for one in norms):
            eps = torch.from_numpy(np.repeat([one.eps for one in norms], [one.channels for one in norms]))
        factors = torch.split(fold_factors(gamma, var, eps, factor), [one.channels for one in norms])
        for (part, _), folded in zip(placed, factors, strict=True):
            part.mul_(folded)
    if norm == "l2sq":
        flat = flat**2
    return list(torch.split(_mark_broken(flat, tensors, layers, graph), sizes))


def _mark_broken(flat: Tensor, tensors: Tensors, layers: Sequence[Layer], graph: LayerGraph) -> Tensor:
    """NaN for channels that add something that is not a finite number, as no factor would tell."""
    places: list[tuple[int, Tensor]] = []
    start = 0
    for layer in layers:
        names = (layer.bias, *(name for norm in graph.norms_of(layer) for name in (norm.mean, norm.bias)))
        places += [(start, tensors[name].detach()) for name in names if name is not None]
        start += layer.out_channels
    if places and not torch.isfinite(together([shift for _, shift in places])).all():
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


def _weight(tensors: Tensors, layer: Layer) -> Tensor:
    weight = tensors.weight(layer)
    assert weight is not None, f"{layer.path}: scored without asking whether it is readable"
    return weight


def _gamma(tensors: Tensors, norm: Norm) -> Tensor:
    if norm.weight is None:
        return torch.ones_like(tensors[norm.var])
    gamma = tensors[norm.weight].detach()
    return gamma if norm.gain is None else gamma * tensors[norm.gain].detach()
