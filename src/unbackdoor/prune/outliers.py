"""Scores -> selections: a layer's mean and deviation, and which of its channels a method wants gone or scaled.

It knows numbers alone. What is an outlier is the method's to say, in masks over all channels of all layers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unbackdoor.findings.layers import Layer

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
        correction: of the deviation, 0 or 1; None where the cuts are not made of mean and deviation.
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
    correction: int | None = 0

    @property
    def path(self) -> str:
        """The layer's path, with the block's name."""
        return self.layer.path + self.part

    @property
    def pruned(self) -> Mask:
        """(C,) bool."""
        return self.high | self.low | self.broken

    @property
    def out_of_reach(self) -> tuple[str, ...]:
        """Which thresholds no score of this layer can pass, whatever its weights."""
        if self.correction is None:
            return ()
        n = int(np.isfinite(self.scores).sum())
        if n == 0:
            return ("no score is finite, so every channel is pruned",)
        if self.std == 0:
            return ("all scores are equal, so no channel can be an outlier",)
        # One outlier among n equal others lies sqrt(n - 1) population deviations out, (n - 1) / sqrt(n) sample ones.
        highest = (n - 1) / np.sqrt(n) if self.correction == 1 else np.sqrt(n - 1)
        notes = []
        # The cut as a population computes it, so that a limit of just `highest` deviations is not lost to rounding.
        if np.isfinite(self.upper) and self.upper >= self.mean + highest * self.std:
            notes.append(
                f"no score can exceed the upper threshold: of {n} channels, none can lie more than {highest:.2f} "
                "standard deviations above the mean"
            )
        if np.isfinite(self.lower) and self.lower <= self.least:
            notes.append("no score can be below the lower threshold: the threshold is zero or negative")
        return tuple(notes)


def segments(layers: Sequence[Layer]) -> list[tuple[Layer, int, int, str]]:
    """(layer, first channel, channels, name) of every population of channels: a layer, or a third of a packed one."""
    names = ("[query]", "[key]", "[value]")
    result = []
    for layer in layers:
        size = layer.out_channels // layer.blocks
        for block in range(layer.blocks):
            result.append((layer, block * size, size, names[block] if layer.blocks == 3 else ""))
    return result


class Population:
    """The scores of all layers as one vector, and each layer's mean and standard deviation over the finite ones.

    Args:
        layers, scores: the layers and their (C_out,) scores, float64 on the CPU.
        correction: 0 for the population's standard deviation, 1 for the sample's.

    Attributes:
        values: (total,) float64, all scores one behind the other.
        finite: (total,) bool.
        varied: (total,) bool: finite, and not all scores of its layer are equal, whatever rounding says.
        mean, std: (layers,); NaN where no score is finite. The three parts of a packed layer count as layers.
    """

    def __init__(self, layers: Sequence[Layer], scores: Sequence[Tensor], *, correction: int) -> None:
        self.parts = segments(layers)
        self.correction = correction
        self.values: Floats = torch.cat([torch.empty(0, dtype=torch.float64), *scores]).numpy()
        self.sizes = np.array([size for _, _, size, _ in self.parts], dtype=np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.finite = np.isfinite(self.values)
        whole = bool(self.finite.all())
        numbers = self.values if whole else np.where(self.finite, self.values, 0.0)
        count = self.sizes if whole else np.add.reduceat(self.finite.astype(np.int64), self.starts)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            self.mean: Floats = np.add.reduceat(numbers, self.starts) / count
            deviations = numbers - self.each(self.mean)
            if not whole:
                deviations = np.where(self.finite, deviations, 0.0)
            std = _spread(deviations, self.starts, self.sizes, np.maximum(count - correction, 1))
            std = np.where(std <= _ROUNDING * np.abs(self.mean), 0.0, np.where(count > 0, std, np.nan))
        self.std: Floats = std
        self.varied: Mask = self.finite & self.each(std > 0)

    def at(self, u: float) -> Floats:
        """(layers,): mean + u std; u infinite stays infinite where the spread is zero."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.full_like(self.mean, u) if np.isinf(u) else self.mean + u * self.std

    def each(self, per_layer: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(layers,) -> (total,): a layer's number for each of its channels."""
        return np.repeat(per_layer, self.sizes)

    def selections(
        self,
        *,
        high: Mask | None = None,
        low: Mask | None = None,
        broken: Mask | None = None,
        near: Mask | None = None,
        factors: Floats | None = None,
        lower: Floats | None = None,
        band: Floats | None = None,
        upper: Floats | None = None,
        by_deviation: bool = True,
    ) -> list[Selection]:
        """One selection a layer, from masks and factors over all channels, (total,), and the layers' cuts, (layers,).

        Args:
            high, low, broken, near, factors: as in a selection; none of them, or 1, where left out.
            lower, band, upper: as in a selection; infinite where left out.
            by_deviation: whether the cuts were made with `at`, so that some of them may be out of reach.
        """
        none, ones = np.zeros(len(self.values), dtype=np.bool_), np.ones(len(self.values))
        masks = [none if mask is None else mask for mask in (high, low, broken, near)]
        factors = ones if factors is None else factors
        endless = np.full_like(self.mean, np.inf)
        cuts = [-endless if lower is None else lower, *(endless if cut is None else cut for cut in (band, upper))]
        rows = zip(*(row.tolist() for row in (self.starts, self.mean, self.std, *cuts)), strict=True)
        result = []
        for (layer, start, size, part), (first, mean, std, low_at, band_at, high_at) in zip(
            self.parts, rows, strict=True
        ):
            channels = slice(first, first + size)
            result.append(
                Selection(
                    layer=layer,
                    start=start,
                    part=part,
                    scores=self.values[channels],
                    mean=mean,
                    std=std,
                    lower=low_at,
                    band=band_at,
                    upper=high_at,
                    high=masks[0][channels],
                    low=masks[1][channels],
                    broken=masks[2][channels],
                    near=masks[3][channels],
                    factors=factors[channels],
                    correction=self.correction if by_deviation else None,
                )
            )
        return result


def either(
    one: Selection, other: Selection, names: tuple[str, str], *, lower: float, upper: float, band: float
) -> Selection:
    """Two selections of one layer, by two kinds of score, as one: an outlier of either is one.

    Its scores are distances from the layer's mean in deviations, by the kind in which the channel lies farther out.

    Args:
        one, other: of the same limits.
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
    """As `Population.at`, of scores that are deviations already."""
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
