"""Scores -> selection: which channels of a layer are outliers, and which nearly so (LPP, Eqs. 7 and 8)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unbackdoor.findings import Remark
from unbackdoor.graph import Layer, LayerGraph, why_left
from unbackdoor.lipschitz import Tensors, readable

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

#: Relative to the mean: scores that differ by no more are equal, and differ by rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Selection:
    """What is to happen to the channels of one layer (or of one block of a packed one).

    Attributes:
        layer: the layer.
        start: the block's first channel in it.
        part: the block's name, "" for a whole layer.
        scores: (C,) float64.
        mean, std: of the finite scores; NaN if there are none.
        lower, band, upper: the cuts; infinite where switched off.
        high, low, broken, near: (C,) bool: above, below, not finite, in the band and to be scaled.
        factors: (C,) what a channel in the band is multiplied with, 1 elsewhere.
        immutable: whether the layer's tensors cannot be edited, so that nothing of this is done.
        least: the smallest score that a channel can have; a lower cut there, or below, never fires.
        note: what a reader should know of it, if anything.
    """

    layer: Layer
    start: int
    part: str
    scores: Floats
    mean: float
    std: float
    lower: float
    band: float
    upper: float
    high: Mask
    low: Mask
    broken: Mask
    near: Mask
    factors: Floats
    immutable: bool = False
    least: float = 0.0
    note: str = ""

    @property
    def path(self) -> str:
        """The layer's path, with the block's name."""
        return self.layer.path + self.part

    @property
    def pruned(self) -> Mask:
        """(C,) bool."""
        return self.high | self.low | self.broken


def segments(layers: Sequence[Layer]) -> list[tuple[Layer, int, int, str]]:
    """(layer, first channel, channels, name) of every population of channels: a layer, or a third of a packed one."""
    names = ("[query]", "[key]", "[value]")
    result = []
    for layer in layers:
        size = layer.out_channels // layer.blocks
        for block in range(layer.blocks):
            result.append((layer, block * size, size, names[block] if layer.blocks == 3 else ""))
    return result


def select(
    layers: Sequence[Layer],
    scores: Sequence[Tensor],
    *,
    lower: float,
    upper: float,
    band: float,
    shrink_to: str,
    upscale: bool,
    correction: int,
) -> list[Selection]:
    """LPP's Eqs. 7 and 8, and the factors of Eq. 9, for all layers at once.

    Args:
        layers, scores: the layers and their (C_out,) scores.
        lower, upper: cuts in standard deviations from the layer's mean; infinite switches one off.
        band: how far below the upper cut near outliers begin, in standard deviations; 0 switches it off.
        shrink_to: "edge" brings a near outlier to the band's lower edge, "mean" to the layer's mean (Eq. 9).
        upscale: whether a band that reaches below the mean may enlarge channels.
        correction: 0 for the population's standard deviation, 1 for the sample's.
    """
    parts = segments(layers)
    if not parts:
        return []
    values: Floats = torch.cat(list(scores)).numpy()
    sizes = np.array([size for _, _, size, _ in parts], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    finite = np.isfinite(values)
    whole = bool(finite.all())
    numbers = values if whole else np.where(finite, values, 0.0)
    count = sizes if whole else np.add.reduceat(finite.astype(np.int64), starts)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        mean = np.add.reduceat(numbers, starts) / count
        deviations = numbers - np.repeat(mean, sizes)
        if not whole:
            deviations = np.where(finite, deviations, 0.0)
        std = _spread(deviations, starts, sizes, np.maximum(count - correction, 1))
        std = np.where(std <= _ROUNDING * np.abs(mean), 0.0, np.where(count > 0, std, np.nan))
        varied = finite & np.repeat(std > 0, sizes)  # where all are equal none stands out, whatever rounding says
        cuts = [_cut(mean, std, u) for u in (lower, upper - band, upper)]
        low_cut, band_cut, high_cut = (np.repeat(cut, sizes) for cut in cuts)
        high = varied & (values > high_cut)
        low = varied & (values < low_cut)
        near = varied & (values > band_cut) & (values < high_cut) & ~low & (values > 0)
        # A band that begins below zero ends there: a negative factor would turn the channel round.
        target = np.maximum(band_cut, 0.0) if shrink_to == "edge" else np.repeat(mean, sizes)
        near &= (target != values) if upscale else (target < values)
        factors = np.where(near, target / np.where(near, values, 1.0), 1.0)
        factors = np.minimum(factors, np.finfo(np.float64).max)
    broken = ~finite
    edges = cuts[1] if band and upper != np.inf else np.full_like(mean, np.inf)
    result = []
    numbers_of = zip(*(row.tolist() for row in (starts, mean, std, cuts[0], edges, cuts[2])), strict=True)
    for (layer, start, size, part), (first, *own_numbers) in zip(parts, numbers_of, strict=True):
        own = slice(int(first), int(first) + size)
        m, s, low_at, band_at, high_at = own_numbers
        result.append(
            Selection(
                layer=layer,
                start=start,
                part=part,
                scores=values[own],
                mean=m,
                std=s,
                lower=low_at,
                band=band_at,
                upper=high_at,
                high=high[own],
                low=low[own],
                broken=broken[own],
                near=near[own],
                factors=factors[own],
            )
        )
    return result


def either(
    one: Selection, other: Selection, names: tuple[str, str], *, lower: float, upper: float, band: float
) -> Selection:
    """Two selections of one layer, by two kinds of score, as one: an outlier of either is one.

    Its scores are distances from the layer's mean in deviations, by the kind in which the channel lies farther out.

    Args:
        one, other: made by `select` with the same limits.
        names: of the two kinds, for readers.
        lower, upper, band: those limits.
    """
    high, broken = one.high | other.high, one.broken | other.broken
    low = (one.low | other.low) & ~high
    near = (one.near | other.near) & ~(high | low | broken)
    both_near = np.minimum(one.factors, other.factors)
    z = np.stack([_deviations(one), _deviations(other)])
    farther = np.where(np.abs(z[0]) >= np.abs(z[1]), z[0], z[1])
    varied = [x for x in (one, other) if x.std > 0]
    spread = float(bool(varied)) if not broken.all() else np.nan
    return dataclasses.replace(
        one,
        scores=np.where(broken, np.nan, np.where(high, z.max(0), np.where(low, z.min(0), farther))),
        mean=0.0 * spread,
        std=spread,
        lower=_limit(lower, spread),
        band=_limit(upper - band if band else np.inf, spread),
        upper=_limit(upper, spread),
        high=high,
        low=low,
        broken=broken,
        near=near,
        factors=np.where(near, np.where(one.near & other.near, both_near, one.factors * other.factors), 1.0),
        least=min((-x.mean / x.std for x in varied), default=0.0),
        note=_found_by(one.high | one.low, other.high | other.low, names),
    )


def _deviations(selection: Selection) -> Floats:
    """(C,) how far each score lies from the mean; 0 where none stands out, or it is no number."""
    if not selection.std > 0:
        return np.zeros_like(selection.scores)
    return np.where(selection.broken, 0.0, (selection.scores - selection.mean) / selection.std)


def _limit(u: float, spread: float) -> float:
    """As `_cut`, of scores that are deviations already."""
    return u if np.isinf(u) else u * spread


def _found_by(one: Mask, other: Mask, names: tuple[str, str]) -> str:
    """By which of two scores channels are outliers, where it is not by both."""
    alone = [(name, np.flatnonzero(mask)) for name, mask in zip(names, (one & ~other, other & ~one), strict=True)]
    return "; ".join(f"outliers by {name} alone: {', '.join(map(str, found))}" for name, found in alone if len(found))


def _spread(deviations: Floats, starts: Counts, sizes: Counts, count: Counts) -> Floats:
    """The standard deviation of each layer, whatever the scores' magnitude: squared relative to the largest."""
    largest = np.maximum.reduceat(np.abs(deviations), starts)
    unit = np.ldexp(1.0, np.frexp(largest)[1] - 1)  # a power of two: dividing by it rounds nothing
    relative = deviations / np.repeat(unit, sizes)
    spread: Floats = unit * np.sqrt(np.add.reduceat(relative * relative, starts) / count)
    return spread


def _cut(mean: Floats, std: Floats, u: float) -> Floats:
    """mean + u std, per layer; u infinite stays infinite where the spread is zero."""
    return np.full_like(mean, u) if np.isinf(u) else mean + u * std


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
        if layer.path in graph.outputs and layer.part != "answer":  # as a graph of one's own making may say it
            layer = dataclasses.replace(layer, part="answer")
        if layer.part == "answer":
            reason = why_left(layer)
        elif layer.part not in ("hidden", "unknown"):
            reason = reason or why_left(layer)
        elif layer.tied and layer.norm is None and reason is None:
            names = (layer.weight, *graph.aliases.get(layer.weight, ()))
            first = next((seen[name] for name in names if name in seen), None)
            seen[layer.weight] = first or layer.path
            reason = f"shares its weight with {first}, and is scored there" if first else None
        if reason is None:
            layers.append(layer)
            if layer.part == "unknown":  # scored, for a reader; not edited
                not_covered.append(Remark(layer.path, layer.kind, layer.why))
        else:
            left_alone.append(Remark(layer.path, layer.kind, reason))
    return layers, not_covered, left_alone
