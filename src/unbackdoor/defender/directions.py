"""What ways into a class do to the classifier's input.

    t      the class
    h      the classifier's input on a surrogate that is not answered with t; mu and S their mean and covariance
    d      the mean change of h on each way into t (`defender.ways_in`), each of length 1, summed
    l      a small share of the mean of S's diagonal, added to it
    u      (S + l)^-1 d / (d^T (S + l)^-1 d): of all linear functions that are 1 at d, the one that varies least over h
    c(x)   u^T (h(x) - mu), in units of its mean change on the ways: how far an image is on them; about 0 where they are
           not walked, and 1 behind them

Images are answered with t for what they show, or since they carry the trigger, or something like it: then c is large.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unbackdoor.defender.on_pixels import CHUNK, OnPixels
from unbackdoor.defender.ways_in import Way
from unbackdoor.errors import MethodError
from unbackdoor.graph.activations import watched

#: A classifier with more features has a covariance too large to hold.
WIDE = 4096
#: l, in units of the mean of S's diagonal.
RIDGE = 0.02


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


def across(h: Tensor, own: Tensor, d: Tensor, ridge: float = RIDGE) -> Tensor:
    """(F,) u; with images that must not lie along it, S has their E[(h - mu) (h - mu)^T] added.

    Args:
        h: (N, F) float64.
        own: (M, F) float64 of those images; M may be 0.
        d: (F,) float64.
        ridge: l, in units of the mean of S's diagonal.

    Raises:
        MethodError: there is no such direction.
    """
    mu = h.mean(0)
    try:
        u = _by_images(h - mu, own - mu, d, ridge) if len(d) > WIDE else _by_features(h, own - mu, d, ridge)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        u = d * torch.nan
    u = u / (u @ d)
    if not bool(torch.isfinite(u).all()):
        raise MethodError("the ways into the class have no common direction at the classifier's input")
    return u


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
    """The same from fewer numbers, of h less mu: (A^T A + l)^-1 d = (d - A^T (A A^T + l)^-1 A d) / l."""
    rows = h / (len(h) - 1) ** 0.5
    added = ridge * (rows.square().sum() / len(d)).clamp_min(1e-12)
    if len(own):
        rows = torch.cat([rows, own / len(own) ** 0.5])
    inner = rows @ rows.T + added * torch.eye(len(rows), dtype=d.dtype)
    u: Tensor = (d - rows.T @ torch.linalg.solve(inner, rows @ d)) / added
    return u


@torch.no_grad()
def classifier_inputs(shown: OnPixels, path: str, pixels: Tensor, way: Way | None = None) -> Tensor:
    """(N, F) float64: what a layer takes, on the images as they are or on a way.

    Raises:
        MethodError: it does not take one vector an image.
    """
    seen: list[Tensor] = []

    def see(_path: str, _call: int, value: object) -> None:
        if isinstance(value, Tensor):
            seen.append(value.double().cpu())

    with watched(shown.model, (path,), see, side="input"):
        for part in torch.split(pixels, CHUNK):
            _ = shown(part) if way is None else way.logits(shown, part[:0], part)
    if any(given.ndim != 2 for given in seen) or sum(map(len, seen)) != len(pixels):
        shapes = ", ".join(str(tuple(given.shape)) for given in seen[:2]) or "nothing"
        raise MethodError(
            f"expected a classifier {path} that takes one vector an image, got {shapes} for {len(pixels)} images"
        )
    return torch.cat(seen)
