"""What ways into a class do to the classifier's input.

    t      the class
    h      the classifier's input on a surrogate that is not answered with t; mu and S their mean and covariance
    d      the mean change of h on each way into t (`defender.ways_in`), each of length 1, summed
    l      added to S's diagonal, see below
    u      (S + l)^-1 d / (d^T (S + l)^-1 d): of all linear functions that are 1 at d, the one that varies least over h
    c(x)   u^T (h(x) - mu), in units of its mean change on the ways: how far an image is on them; about 0 where they are
           not walked, and 1 behind them

Images are answered with t for what they show, or since they carry the trigger, or something like it: then c is large.

A classifier with many features for so few images has a u along which these images hardly vary, and others do. So l is
chosen by cross-validation: u is fitted on three quarters of the images, and l is that of `RIDGES`, in units of the mean
of S's diagonal, with which the others vary least along u.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unbackdoor.defender.on_pixels import CHUNK, OnPixels
from unbackdoor.defender.ways_in import Way
from unbackdoor.errors import MethodError
from unbackdoor.graph.activations import watched

#: What l may be, in units of the mean of S's diagonal; the first where images are too few to tell.
RIDGES = (0.02, 0.1, 0.5, 2.0)
#: Parts that are left out in turn.
FOLDS = 4


def direction(shown: OnPixels, path: str, ways: Sequence[Way], pixels: Tensor, h: Tensor) -> Tensor:
    """(F,) the sum of the mean changes that the ways make to the classifier's input, each of length 1."""
    return _summed(_changes(shown, path, ways, pixels, h))


def _changes(shown: OnPixels, path: str, ways: Sequence[Way], pixels: Tensor, h: Tensor) -> Tensor:
    """(ways, F) the mean changes."""
    changes = [(classifier_inputs(shown, path, pixels, way) - h).mean(0) for way in ways]
    return torch.stack(changes) if changes else h[:0]


def _summed(changes: Tensor) -> Tensor:
    total: Tensor = (changes / changes.norm(dim=1, keepdim=True).clamp_min(1e-12)).sum(0)
    return total


def across(h: Tensor, own: Tensor, d: Tensor, ridge: float | None = None) -> Tensor:
    """(F,) u; with images that must not lie along it, S has their E[(h - mu) (h - mu)^T] added.

    Args:
        h: (N, F) float64.
        own: (M, F) float64 of those images; M may be 0.
        d: (F,) float64.
        ridge: l, in units of the mean of S's diagonal; None: chosen (`best_ridge`).

    Raises:
        MethodError: there is no such direction.
    """
    u = _across(h, own, d, best_ridge(h, own, d) if ridge is None else ridge)
    if not bool(torch.isfinite(u).all()):
        raise MethodError("the ways into the class have no common direction at the classifier's input")
    return u


def best_ridge(h: Tensor, own: Tensor, d: Tensor) -> float:
    """The l with which u varies least over images that it was not fitted on. The arguments are those of `across`."""
    return RIDGES[0] if len(h) < 2 * FOLDS else min(RIDGES, key=lambda ridge: _varies(h, own, d, ridge))


def _varies(h: Tensor, own: Tensor, d: Tensor, ridge: float) -> float:
    """How much: the mean of (u^T (h - mu))^2, and that of the own images."""
    total = 0.0
    for fold in left_out(h, own, d, ridge):
        for images in (fold.h, fold.own):
            total += float(((images - fold.mu) @ fold.u).square().mean()) if len(images) else 0.0
    return math.inf if math.isnan(total) else total


@dataclass(frozen=True, eq=False)
class Fold:
    """u and mu of most images, and the images that were left out: h and own, as in `across`."""

    mu: Tensor
    u: Tensor
    h: Tensor
    own: Tensor


def left_out(h: Tensor, own: Tensor, d: Tensor, ridge: float) -> Iterator[Fold]:
    """Each part of the images is left out in turn. The arguments are those of `across`."""
    for number in range(FOLDS):
        out, mine = (torch.arange(len(images)) % FOLDS == number for images in (h, own))
        yield Fold(h[~out].mean(0), _across(h[~out], own[~mine], d, ridge), h[out], own[mine])


def _across(h: Tensor, own: Tensor, d: Tensor, ridge: float) -> Tensor:
    """u; NaN where there is none."""
    solve = _by_images if len(d) > len(h) + len(own) else _by_features
    try:
        u = solve(h, own - h.mean(0), d, ridge)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        u = d * torch.nan
    return u / (u @ d)


def along(shown: OnPixels, path: str, ways: Sequence[Way], others: Tensor, images: Tensor) -> Tensor:
    """(K,) float64: c of some images.

    Args:
        shown: the network.
        path: of its classifier.
        ways: into a class.
        others: (N, C, H, W) surrogates that are not answered with it.
        images: (K, C, H, W).

    Raises:
        MethodError: as `classifier_inputs` and `across`.
    """
    h = classifier_inputs(shown, path, others)
    changes = _changes(shown, path, ways, others, h)
    u = across(h, h[:0], _summed(changes))
    far: Tensor = (classifier_inputs(shown, path, images) - h.mean(0)) @ u
    return far / (changes @ u).abs().mean()


def _by_features(h: Tensor, own: Tensor, d: Tensor, ridge: float) -> Tensor:
    """(S + l)^-1 d, of the features h and of the own images', less mu."""
    spread = torch.cov(h.T).reshape(len(d), len(d))
    added = ridge * spread.diagonal().mean().clamp_min(1e-12)
    if len(own):
        spread = spread + own.T @ own / len(own)
    u: Tensor = torch.linalg.solve(spread + added * torch.eye(len(d), dtype=d.dtype), d)
    return u


def _by_images(h: Tensor, own: Tensor, d: Tensor, ridge: float) -> Tensor:
    """The same from fewer numbers, where features are many: (A^T A + l)^-1 d = (d - A^T (A A^T + l)^-1 A d) / l."""
    rows = (h - h.mean(0)) / (len(h) - 1) ** 0.5
    added = ridge * (rows.square().sum() / len(d)).clamp_min(1e-12)
    if len(own):
        rows = torch.cat([rows, own / len(own) ** 0.5])
    inner = rows @ rows.T + added * torch.eye(len(rows), dtype=d.dtype)
    u: Tensor = (d - rows.T @ torch.linalg.solve(inner, rows @ d)) / added
    return u


@torch.no_grad()
def classifier_inputs(
    shown: OnPixels, path: str, pixels: Tensor, way: Way | None = None, strength: float = 1.0
) -> Tensor:
    """(N, F) float64: what a layer takes, on the images as they are or on a way, its trigger so strong.

    Raises:
        MethodError: it does not take one vector an image.
    """
    seen: list[Tensor] = []

    def see(_path: str, _call: int, value: object) -> None:
        if isinstance(value, Tensor):
            seen.append(value.double().cpu())

    with watched(shown.model, (path,), see, side="input"):
        for part in torch.split(pixels, CHUNK):
            as_strong = None if strength == 1 else torch.full((len(part),), strength)
            _ = shown(part) if way is None else way.logits(shown, part[:0], part, as_strong)
    if any(given.ndim != 2 for given in seen) or sum(map(len, seen)) != len(pixels):
        shapes = ", ".join(str(tuple(given.shape)) for given in seen[:2]) or "nothing"
        raise MethodError(
            f"expected a classifier {path} that takes one vector an image, got {shapes} for {len(pixels)} images"
        )
    return torch.cat(seen)
