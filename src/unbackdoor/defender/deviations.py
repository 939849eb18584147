"""How far each class stands from the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

#: Deviations of logarithms below this are taken for it: where classes are all but equal, nothing stands out.
LEAST = 0.15


def deviations(
    values: Sequence[float], *, least: float = 0.0, middle: Literal["linear", "lower"] = "linear"
) -> list[float]:
    """Each number's distance from the median with its sign, in median absolute deviations (of a normal: times 1.4826).

    Args:
        values: numbers; infinite ones lie beyond every deviation, and count for the median alone.
        least: a smaller deviation is taken for this one. Without one, what differs from equal numbers lies infinitely
            far out.
        middle: the median of an even count: the mean of the two in the middle, or the lower of them.
    """
    numbers = torch.tensor(list(values), dtype=torch.float64)
    median = float(numbers.quantile(0.5, interpolation=middle))
    if not math.isfinite(median):
        finite = numbers[numbers.isfinite()]
        median = float(finite.quantile(0.5)) if len(finite) else 0.0
    distance = numbers - median
    apart = distance.abs()
    measured = apart[apart.isfinite()]
    spread = max(1.4826 * float(measured.quantile(0.5)) if len(measured) else 0.0, least)
    return [float(d) / spread if spread else math.copysign(math.inf, d) if d else 0.0 for d in distance]
