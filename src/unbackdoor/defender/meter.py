"""The damage meter: how much accuracy did an edit cost, where there is no image to measure it on?

The network is shown generated images of several kinds before and after the edit. An edit that changes many answers, or
moves the probabilities far, costs accuracy. No kind of image is right by itself: leaves and spectra are far from the
data; impressions are what the network is surest of, so that half of an edit's harm does not show; averages of two
impressions, or of an impression and leaves, lie nearer to where the network decides.

    changed(k)     share of the images of kind k whose answer changes
    kl(k)          mean Kullback-Leibler divergence of the probabilities, before from after, at most 1 an image
    loss           sum over kinds of a_k changed(k) + b_k kl(k), all coefficients non-negative (Lawson & Hanson)
    interval       loss / factor - rest to loss * factor + rest, so wide that 90 % of the calibration lay within

The coefficients are in meter.json, fitted on networks with known data by `python studies/damage.py fit`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.surrogates import class_images, dead_leaves, random_spectra
from unbackdoor.findings import Damage

#: Images of each kind, and how many a network has that runs slowly.
COUNT, LEAST = 200, 20
#: Floating-point operations that the images may take; more of a network of which LEAST take more, up to LONGEST, where
#: nobody asked for them.
EFFORT, LONGEST = 1e12, 6e12
#: Passes through the network that an image of each kind takes: making an impression is most of it.
PASSES = 160
#: The most that one image adds to the mean divergence: an answer that was turned round is turned round.
MOST = 1.0


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
        weights: feature -> points of accuracy for each unit of it.
        factor, rest: the interval is loss / factor - rest to loss * factor + rest, in points.
        made_on: what it was fitted on, in words.
    """

    weights: dict[str, float]
    factor: float
    rest: float
    made_on: str


@functools.cache
def coefficients() -> Coefficients:
    """Those that ship with the package."""
    return msgspec.json.decode(resources.files(__package__).joinpath("meter.json").read_bytes(), type=Coefficients)


def effort(network: OnPixels) -> float:
    """Floating-point operations that one image of each kind takes."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.full((1, *network.spec.shape), 0.5))
    return float(PASSES * counter.get_total_flops())


def count_for(each: float) -> int:
    """How many images of each kind a network is shown.

    Args:
        each: operations that one of each takes.
    """
    return max(LEAST, min(COUNT, int(EFFORT / max(each, 1.0))))


def meter_images(network: OnPixels, generator: torch.Generator, *, count: int = COUNT) -> Shown:
    """Images of every kind, and the network's logits on them.

    Args:
        network: before it is edited.
        generator: of everything.
        count: images of each kind.
    """
    impressions = class_images(network, count, generator).images
    leaves = dead_leaves(len(impressions), network.spec, generator)
    order = torch.randperm(len(impressions), generator=generator)
    next_one = torch.empty_like(order).scatter_(0, order, order.roll(1))  # a ring, in which no image meets itself
    images = {
        "leaves": leaves,
        "spectra": random_spectra(len(impressions), network.spec, generator),
        "impressions": impressions,
        "pairs": (impressions + impressions[next_one]) / 2,
        "mixed": (impressions + leaves) / 2,
    }
    return Shown(images, {kind: network.logits(pixels) for kind, pixels in images.items()})


def features(shown: Shown, after: OnPixels) -> dict[str, float]:
    """`changed KIND` and `kl KIND` of an edited network, by name."""
    return _features(shown, _answered(shown, after))


def _answered(shown: Shown, after: OnPixels) -> dict[str, Tensor]:
    """Kind -> (N, classes) logits of the edited network."""
    return {kind: after.logits(pixels) for kind, pixels in shown.images.items()}


def _features(shown: Shown, now: dict[str, Tensor]) -> dict[str, float]:
    found = {}
    for kind, before in shown.before.items():
        found[f"changed {kind}"] = float((before.argmax(1) != now[kind].argmax(1)).double().mean())
        found[f"kl {kind}"] = float(divergences(before, now[kind]).mean())
    return found


def divergences(before: Tensor, after: Tensor) -> Tensor:
    """(N, classes) logits twice -> (N,) KL(before || after) in nats, at most MOST; MOST where the edit broke it."""
    p, q = before.double().log_softmax(1), after.double().log_softmax(1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1).nan_to_num(nan=MOST).clamp(0, MOST)


def predict(shown: Shown, after: OnPixels, scale: Coefficients | None = None) -> Damage:
    """What an edit costs.

    Args:
        shown: of the network before.
        after: the network after.
        scale: coefficients; those of the package by default.
    """
    scale = scale or coefficients()
    now = _answered(shown, after)
    seen = _features(shown, now)
    loss = sum(weight * seen[name] for name, weight in scale.weights.items())
    return Damage(
        loss=loss,
        low=max(0.0, loss / scale.factor - scale.rest),
        high=min(100.0, loss * scale.factor + scale.rest),
        changed={kind: seen[f"changed {kind}"] for kind in shown.images},
        images=len(shown.images["impressions"]),
        recall=_recall_lost(shown, now),
        calibrated_on=scale.made_on,
    )


def _recall_lost(shown: Shown, now: dict[str, Tensor]) -> tuple[float | None, ...]:
    """Of impressions and their averages, by class."""
    kinds = ("impressions", "pairs")
    was = torch.cat([shown.before[kind].argmax(1) for kind in kinds])
    is_now = torch.cat([now[kind].argmax(1) for kind in kinds])
    classes = shown.before["impressions"].shape[1]
    counts = torch.bincount(was, minlength=classes)
    lost = torch.bincount(was[was != is_now], minlength=classes)
    pairs = zip(lost.tolist(), counts.tolist(), strict=True)
    return tuple(gone / count if count else None for gone, count in pairs)
