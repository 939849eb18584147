"""The strongest cut within a budget: thresholds chosen by what they are predicted to cost, with no data.

A path is a method with its threshold u left open: the lower u, the more is cut, in order of score. Along a path the
predicted loss grows as u falls, to a good approximation, so that bisection finds the lowest u whose loss stays within
the budget. Of several paths (other norms, with a band or without) the one is taken that takes most out:

    strength = sum over channels of taken (1 if it is pruned, 1 - a if it is scaled by a) * max(0, |z| - 2)

z is how many standard deviations a channel's score lies from its layer's mean; what is within two is no outlier.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from unbackdoor.defences.base import Defence
from unbackdoor.defender import meter
from unbackdoor.defender.case import Case
from unbackdoor.defender.on_pixels import OnPixels, on_pixels
from unbackdoor.defender.working_copy import working_copy
from unbackdoor.errors import MethodError
from unbackdoor.outputs import answering
from unbackdoor.prune import Plan, copy_model

#: The thresholds that are tried, from the mildest.
THRESHOLDS = tuple(6 - step / 8 for step in range(37))
#: Within so many standard deviations of the mean, a channel is no outlier.
ORDINARY = 2.0

Path = Callable[[float], Defence]


def strongest(case: Case, budget: float, paths: Sequence[Path]) -> Plan | None:
    """The plan that takes most out of a network within a budget; None if even the mildest of each path costs more.

    The same network gives the same plan: what is drawn is drawn from a seed of its own.

    Args:
        case: a network that can be run, and what is known of its images.
        budget: points of accuracy that it may be predicted to cost.
        paths: what is tried; of equally strong plans, that of the first.

    Raises:
        SettingError: there are only tensors.
        MethodError: the size of the network's images is not known, or it does not answer them.
    """
    generator = torch.Generator().manual_seed(0)  # as in `predict_damage`: both see the same images
    case = dataclasses.replace(case, graph=case.layers(), generator=torch.Generator().manual_seed(0))
    with case.working("auto") as model:
        network, _ = on_pixels(case, model, exact=True)
        shown = meter.meter_images(network, generator, count=meter.count_for(meter.effort(network)))
        found = [_lowest(case, budget, path, network, shown) for path in paths]
    plans = [plan for plan in found if plan is not None]
    return max(plans, key=strength) if plans else None


def _lowest(case: Case, budget: float, path: Path, network: OnPixels, shown: meter.Shown) -> Plan | None:
    """The plan of the lowest threshold of a path that stays within the budget, by bisection."""
    best = None
    first, last = 0, len(THRESHOLDS) - 1
    while first <= last:
        middle = (first + last) // 2
        plan = path(THRESHOLDS[middle]).plan_for(case)
        if _loss(case, plan, network, shown) <= budget:
            best, first = plan, middle + 1
        else:
            last = middle - 1
    return best


def _loss(case: Case, plan: Plan, network: OnPixels, shown: meter.Shown) -> float:
    """What a plan is predicted to cost; infinite where it leaves no network that answers."""
    edited = copy_model(case.module)
    try:
        plan.apply_(edited)
        with answering(model := working_copy(edited, "auto"), case.output):
            return meter.predict(shown, dataclasses.replace(network, model=model.requires_grad_(False))).loss
    except MethodError:
        return math.inf


def strength(plan: Plan) -> float:
    """How much of its outliers a plan takes out; see the top of this file."""
    total = 0.0
    for one in plan.selections:
        if one.immutable or not one.std > 0:
            continue
        z = np.abs(np.nan_to_num((one.scores - one.mean) / one.std))
        taken = np.where(one.high | one.low, 1.0, np.where(one.near, np.maximum(1 - one.factors, 0.0), 0.0))
        total += float((taken * np.maximum(z - ORDINARY, 0.0)).sum())
    return total
