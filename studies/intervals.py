"""95 % intervals for the studies' tables: of means over networks, and of shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

#: Draws of a bootstrap, and the seed of all of them.
DRAWS, SEED = 2000, 0
#: Of the normal distribution, two-sided at 95 %.
Z = 1.959964


def bootstrap(things: Sequence[Any], rule: Callable[[list[Any]], float | None]) -> tuple[float, float] | None:
    """The interval of a figure under other draws of as many things, say networks; None of fewer than three.

    Args:
        things: what is drawn, with replacement.
        rule: the figure; draws of which it is None are left out.
    """
    if len(things) < 3:
        return None
    draws = np.random.default_rng(SEED).integers(len(things), size=(DRAWS, len(things)))
    found = [value for draw in draws if (value := rule([things[index] for index in draw])) is not None]
    return (float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))) if found else None


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's interval of a share, in [0, 1]."""
    if not total:
        return 0.0, 1.0
    share, square = hits / total, Z * Z / total
    middle = (share + square / 2) / (1 + square)
    half = Z * math.sqrt(share * (1 - share) / total + square / (4 * total)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean(values: Sequence[float | None], digits: int = 1) -> str:
    """The mean of those that are known, and its interval, as text; "" of none."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    found = bootstrap(known, lambda drawn: float(np.mean(drawn)))
    return f"{np.mean(known) + 0.0:.{digits}f}" + _brackets(found, digits)


def share(hits: int, total: int) -> str:
    """Hits of a total, and Wilson's interval in percent, as text."""
    if not total:
        return "0 of 0"
    low, high = wilson(hits, total)
    return f"{hits} of {total}" + _brackets((100 * low, 100 * high), 0, " %")


def figure(value: float | None, things: Sequence[Any], rule: Callable[[list[Any]], float | None]) -> str:
    """A figure of some things, and its interval, as text."""
    return "-" if value is None else f"{value:.3f}" + _brackets(bootstrap(things, rule), 3)


def _brackets(found: tuple[float, float] | None, digits: int, unit: str = "") -> str:
    return "" if found is None else f" [{found[0]:.{digits}f}, {found[1]:.{digits}f}{unit}]"
