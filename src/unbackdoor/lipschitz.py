"""One Lipschitz constant an output channel, from the weights alone.

A channel of a convolution is a dot product of its filter w_j with a patch x, so |f_j(x) - f_j(x')| <= |w_j| |x - x'|,
with equality possible: its constant is |w_j|_2 exactly (LPP, Sec. 3.3). A BatchNorm behind it multiplies by
gamma_j / sqrt(var_j + eps) at test time and shifts; folding that factor in gives the constant of the pair.

CLP (Zheng et al., ECCV 2022) takes the largest singular value of the filter reshaped to (c_in, k*k) instead:
sigma <= |w_j|_2 <= sqrt(min(c_in, k*k)) sigma, and the two agree on 1x1 convolutions and Linear layers.

Nothing here reads a file or a graph: tensors come in and go out, and gradients go through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from unbackdoor.findings.layers import Layer

NormKind = Literal["l2", "l2sq", "spectral"]
NormFactor = Literal["folded", "no_eps", "printed", "printed_signed", "none"]


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


MEASURES: dict[str, Callable[[Tensor, Layer], Tensor]] = {
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
    measure = MEASURES[norm]
    parts = [measure(_computable(weight), layer) for weight, layer in zip(weights, layers, strict=True)]
    flat = together(parts)
    if _in_range(flat):
        return flat
    for index, (weight, layer) in enumerate(zip(weights, layers, strict=True)):
        if not _in_range(parts[index]):
            parts[index] = _measure_scaled(measure, weight, layer)
    return together(parts)


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


def _computable(weight: Tensor) -> Tensor:
    """Half precision is computed in float32."""
    return weight.float() if weight.element_size() < 4 else weight


def together(parts: Sequence[Tensor]) -> Tensor:
    """One float64 vector on the CPU, in one transfer."""
    first = parts[0]
    if all(part.dtype == first.dtype and part.device == first.device for part in parts):
        return torch.cat(list(parts)).to("cpu", torch.float64)
    return torch.cat([part.to("cpu", torch.float64) for part in parts])
