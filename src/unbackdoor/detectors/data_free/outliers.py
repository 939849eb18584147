"""How far each class stands from the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

#: Deviations of logarithms below this are taken for it: where classes are all but equal, nothing stands out.
LEAST = 0.15


def deviations(values: Sequence[float]) -> list[float]:
    """Each value's distance from the median, in robust deviations (1.4826 times the median absolute one).

    Args:
        values: logarithms; infinite ones are kept apart, beyond every deviation.
    """
    numbers = torch.tensor(list(values), dtype=torch.float64)
    median = float(numbers.quantile(0.5, interpolation="lower"))
    if not math.isfinite(median):
        finite = numbers[numbers.isfinite()]
        median = float(finite.quantile(0.5)) if len(finite) else 0.0
    apart = (numbers - median).abs()
    spread = 1.4826 * float(apart[apart.isfinite()].quantile(0.5)) if bool(apart.isfinite().any()) else 0.0
    return [(float(value) - median) / max(spread, LEAST) for value in numbers]
