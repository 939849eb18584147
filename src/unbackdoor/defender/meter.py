"""The damage meter: how much accuracy did an edit cost, where there is no image to measure it on?

The network is shown generated images before and after the edit, and its logits are compared. How many answers change
says little: generated images lie nearer to where a network decides than real ones do, and how much nearer differs from
network to network. But an edit moves the logits of generated images about as far as those of real ones, and the farther
it moves them, the more real answers change.

    d          logits after - logits before, of one image, less their mean over the images of its kind
    moved(k)   median over the images of kind k of the variance of d over the classes but one, in units of the median
               variance of the impressions' logits before
    loss       sum over kinds of a_k moved(k)^POWER, all a_k non-negative, at most 100 points
    interval   loss / below - rest to loss * above + rest, so wide that 90 % of the calibration lay within

Where a repair removes a backdoor, all generated images lose what had drawn them to the attacker's class; real images
never had it. That is why their common movement is taken away, and the class left out whose logit moved most against the
others. Whether that class is still answered is told apart (`recall`).

The coefficients are in meter.json, fitted on networks with known data by `python studies/damage.py fit`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

import msgspec
import torch
from torch import Tensor

from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.surrogates import class_images, dead_leaves
from unbackdoor.findings import Damage

#: Images of each kind, and how many a network has that runs slowly.
COUNT, LEAST = 100, 20
#: Floating-point operations that the images may take; more of a network of which LEAST take more, up to LONGEST, where
#: nobody asked for them.
EFFORT, LONGEST = 1.2e12, 6e12
#: Passes through the network that an image of each kind takes: making an impression is most of it.
PASSES = 160
#: Of what moved; 1 was too low for large edits of the calibration, and 1.5 too high.
POWER = 1.25


@dataclass(frozen=True)
class Shown:
    """The images of a meter, and what the network answered to them before it was edited.

    Attributes:
        images: kind -> (N, C, H, W) in [0, 1].
        before: kind -> (N, classes) logits.
    """

    images: dict[str, Tensor]
    before: dict[str, Tensor]


class Coefficients(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What meter.json holds.

    Attributes:
        weights: feature -> points of accuracy for each unit of its POWER.
        below, above, rest: the interval is loss / below - rest to loss * above + rest, in points.
        made_on: what it was fitted on, in words.
    """

    weights: dict[str, float]
    below: float
    above: float
    rest: float
    made_on: str


@functools.cache
def coefficients() -> Coefficients:
    """Those that ship with the package."""
    return msgspec.json.decode(resources.files(__package__).joinpath("meter.json").read_bytes(), type=Coefficients)


def effort(network: OnPixels) -> float:
    """Floating-point operations that one image of each kind takes."""
    return float(PASSES * network.operations)


def count_for(each: float) -> int:
    """How many images of each kind a network is shown.

    Args:
        each: operations that one of each takes.
    """
    return max(LEAST, min(COUNT, int(EFFORT / max(each, 1.0))))


def meter_images(
    network: OnPixels, generator: torch.Generator, *, count: int = COUNT, impressions: Tensor | None = None
) -> Shown:
    """Images of every kind, and the network's logits on them.

    Args:
        network: before it is edited.
        generator: of everything.
        count: images of each kind.
        impressions: (N, C, H, W) of all classes, where there are some; else they are made.
    """
    if impressions is None:
        impressions = class_images(network, count, generator).images
    else:
        impressions = impressions[torch.randperm(len(impressions), generator=generator)[:count]]
    order = torch.randperm(len(impressions), generator=generator)
    next_one = torch.empty_like(order).scatter_(0, order, order.roll(1))  # a ring, in which no image meets itself
    images = {
        "leaves": dead_leaves(len(impressions), network.spec, generator),
        "impressions": impressions,
        "pairs": (impressions + impressions[next_one]) / 2,
    }
    return Shown(images, {kind: network.logits(pixels) for kind, pixels in images.items()})


def features(shown: Shown, after: OnPixels) -> dict[str, float]:
    """`moved KIND` of an edited network, by name."""
    return moved(shown.before, answered(shown, after))


def answered(shown: Shown, after: OnPixels) -> dict[str, Tensor]:
    """Kind -> (N, classes) logits of the edited network."""
    return {kind: after.logits(pixels) for kind, pixels in shown.images.items()}


def moved(before: dict[str, Tensor], now: dict[str, Tensor]) -> dict[str, float]:
    """`moved KIND`, by name; see the top of this file.

    Args:
        before, now: kind -> (N, classes) logits.
    """
    apart, found = class_apart(before, now), {}
    unit = float(before["impressions"].double().var(1, correction=0).median()) or 1.0
    for kind, logits in before.items():
        change = now[kind].double() - logits.double()
        change = change - change.mean(0)
        others = change if apart is None else torch.cat([change[:, :apart], change[:, apart + 1 :]], 1)
        found[f"moved {kind}"] = float(others.var(1, correction=0).median()) / unit
    return found


def class_apart(before: dict[str, Tensor], now: dict[str, Tensor]) -> int | None:
    """The class whose logit moved most against the others' on impressions; None of fewer than three, or if none moved.

    Args:
        before, now: kind -> (N, classes) logits.
    """
    change = now["impressions"].double() - before["impressions"].double()
    against = (change - change.median(1, keepdim=True).values).square().mean(0)
    return int(against.argmax()) if len(against) > 2 and bool(against.any()) else None


def predict(shown: Shown, after: OnPixels, scale: Coefficients | None = None) -> Damage:
    """What an edit costs.

    Args:
        shown: of the network before.
        after: the network after.
        scale: coefficients; those of the package by default.
    """
    scale = scale or coefficients()
    now = answered(shown, after)
    seen = moved(shown.before, now)
    loss = min(100.0, sum(weight * seen[name] ** POWER for name, weight in scale.weights.items()))
    return Damage(
        loss=loss,
        low=max(0.0, loss / scale.below - scale.rest),
        high=min(100.0, loss * scale.above + scale.rest),
        changed={kind: _share(was.argmax(1) != now[kind].argmax(1)) for kind, was in shown.before.items()},
        images=len(shown.images["impressions"]),
        recall=_recall_lost(shown.before["impressions"], now["impressions"]),
        apart=class_apart(shown.before, now),
        calibrated_on=scale.made_on,
    )


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


def _recall_lost(before: Tensor, now: Tensor) -> tuple[float | None, ...]:
    """Of each class, the share of the images answered with it before that are no longer; None where none was."""
    was, classes = before.argmax(1), before.shape[1]
    counts = torch.bincount(was, minlength=classes)
    lost = torch.bincount(was[was != now.argmax(1)], minlength=classes)
    return tuple(gone / count if count else None for gone, count in zip(lost.tolist(), counts.tolist(), strict=True))
