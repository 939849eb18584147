"""Erase: the direction in which the suspected class is pushed is taken out of the classifier. It needs no data, and has
no paper of its own.

Symbols:
    t          the suspected class, or one that was given
    W, b       the classifier's weights and bias
    h          its input on a surrogate that is not answered with t; mu and S their mean and covariance
    d          the direction: the mean change of h on each easy way into t (`defender.ways_in`), each of length 1,
               summed
    l          a small share of the mean of S's diagonal, added to it: `ridge`
    a          how far along d is gone back: `overshoot`
    x_t        images of t that do not need the ways in, see below

A backdoor moves h by about d, whatever the image. We look for the affine map h -> h - a d u^T (h - mu), with u^T d = 1,
that moves mu + d back to mu (a = 1) and moves all other h as little as can be: the least E[(u^T (h - mu))^2] = u^T S u.
Lagrange gives u = S^-1 d / (d^T S^-1 d). Put into the classifier:

    W' = W - a (W d) u^T        b' = b + a (W d) (u^T mu)

It is an oblique projection: it takes out what lies along d, measured where images seldom are. The orthogonal one
(u = d / d^T d) takes away what honest classes have along d. With a = 1 a stamped image has the logits of an average
image, which may still be t; a > 1 takes it past that.

The class itself must not lie along u. Surrogates answered with t may carry the trigger, so they are left out of mu and
S. Instead the erasure is made twice. The first one closes the ways, roughly. Class impressions of t are made on what
it leaves: they look like t in another way than by the trigger, and are called x_t. The first erasure is undone, and
the second takes

    S' = S + E[(h(x_t) - mu) (h(x_t) - mu)^T]

for S, so that u^T (h(x_t) - mu) is small, and t is answered as before. It works on a network with one linear
classifier.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.defences.base import DEFENCES
from unbackdoor.defences.data_free.looking import InRounds, Scene, WaysIn
from unbackdoor.defender.head import classifier
from unbackdoor.defender.on_pixels import CHUNK, OnPixels
from unbackdoor.defender.surrogates import impressions_of
from unbackdoor.defender.ways_in import Way
from unbackdoor.errors import MethodError
from unbackdoor.graph.activations import watched
from unbackdoor.prune import shared
from unbackdoor.settings import setting

#: Surrogates below this number give no covariance.
FEWEST = 30
#: A classifier with more features has a covariance too large to hold.
WIDE = 4096


@dataclass(frozen=True, kw_only=True)
class Erase(InRounds):
    """Take the direction that the easy ways share out of the classifier, obliquely."""

    name: ClassVar[str] = "erase"
    title: ClassVar[str] = "Reconstruct and erase obliquely"
    passes: ClassVar[str] = "about 130,000 passes of one generated image, for ten classes"

    rounds: int = setting(2, "searches for easy ways, each followed by an erasure", least=1, own=True)
    overshoot: float = setting(1.25, "how far along the direction is gone back; 1 is to the mean", above=0, own=True)
    protected: int = setting(40, "images x_t of the class, which are answered as before", least=0, own=True)
    ridge: float = setting(
        0.02, "added to the covariance's diagonal, in units of its mean", above=0, most=1e6, own=True
    )

    def begin(self, scene: Scene, search: WaysIn) -> Callable[[Sequence[Way]], str]:
        """Each round takes out one direction; the first makes x_t."""
        path, head = self._head(scene)
        others = scene.pool.others(search.label)
        if len(others) < FEWEST:
            raise MethodError(
                f"{self.name}: expected {FEWEST} or more impressions that are not answered with class {search.label}, "
                f"got {len(others)}; make more with --surrogates (surrogates=...)"
            )
        own: Tensor | None = None

        @torch.no_grad()
        def take_out(found: Sequence[Way], own: Tensor) -> None:
            h = inputs_of(scene.shown, path, others)
            d = direction(scene.shown, path, found, others, h)
            kept = inputs_of(scene.shown, path, own) if len(own) else h[:0]
            weight, bias = head.weight.double().cpu(), head.bias.double().cpu()
            weight, bias = erased(weight, bias, h, d, kept, overshoot=self.overshoot, ridge=self.ridge)
            head.weight.copy_(weight)
            head.bias.copy_(bias)

        def step(found: Sequence[Way]) -> str:
            nonlocal own
            if own is None:
                own = others[:0]
                if self.protected:
                    with dataclasses.replace(self, protected=0).for_once(scene, search, found) as shown:
                        own = impressions_of(shown, search.label, self.protected, scene.generator)
                    own = own[shown.logits(own).argmax(1) == search.label]
            take_out(found, own)
            return f"Their common direction was taken out of {path}."

        return step

    def _head(self, scene: Scene) -> tuple[str, nn.Linear]:
        """The classifier and its path."""
        _, _, path = classifier(scene.graph, scene.shown.model)
        head, layer = scene.shown.model.get_submodule(path), scene.graph[path]
        if not isinstance(head, nn.Linear) or head.bias is None:
            raise MethodError(f"{self.name}: expected a Linear classifier with a bias, {path} is {head}")
        tied = layer.tied or layer.bias in shared(scene.graph)
        if layer.parametrization is not None or tied:
            why = "shared with another layer" if tied else "computed by a parametrization"
            raise MethodError(
                f"{self.name}: the weight or bias of the classifier {path} is {why}, so it cannot be edited alone"
            )
        return path, head


def direction(shown: OnPixels, path: str, ways: Sequence[Way], pixels: Tensor, h: Tensor) -> Tensor:
    """(F,) the sum of the mean changes that the ways make to the classifier's input, each of length 1."""
    total = torch.zeros_like(h[0])
    for way in ways:
        change = (inputs_of(shown, path, pixels, way) - h).mean(0)
        total += change / change.norm().clamp_min(1e-12)
    return total


def erased(
    weight: Tensor, bias: Tensor, h: Tensor, d: Tensor, own: Tensor, *, overshoot: float, ridge: float
) -> tuple[Tensor, Tensor]:
    """W' and b'.

    Args:
        weight, bias: (classes, F) and (classes,) float64.
        h: (N, F) float64.
        d: (F,) float64.
        own: (M, F) float64, of x_t; M may be 0.
        overshoot, ridge: a, and l in units of the mean of S's diagonal.

    Raises:
        MethodError: there is no such direction.
    """
    mu = h.mean(0)
    try:
        u = _along(h - mu, own - mu, d, ridge) if len(d) > WIDE else _solved(h, own - mu, d, ridge)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        u = d * torch.nan
    u = u / (u @ d)
    if not bool(torch.isfinite(u).all()):
        raise MethodError("erase: the ways into the class have no common direction that can be taken out")
    pushed = overshoot * (weight @ d)
    return weight - torch.outer(pushed, u), bias + pushed * (u @ mu)


def _solved(h: Tensor, own: Tensor, d: Tensor, ridge: float) -> Tensor:
    """(S' + l)^-1 d, of the features h and of x_t's, less mu."""
    spread = torch.cov(h.T).reshape(len(d), len(d))
    added = ridge * spread.diagonal().mean().clamp_min(1e-12)
    if len(own):
        spread = spread + own.T @ own / len(own)
    u: Tensor = torch.linalg.solve(spread + added * torch.eye(len(d), dtype=d.dtype), d)
    return u


def _along(h: Tensor, own: Tensor, d: Tensor, ridge: float) -> Tensor:
    """The same from fewer numbers, of h less mu: (A^T A + l)^-1 d = (d - A^T (A A^T + l)^-1 A d) / l."""
    rows = h / (len(h) - 1) ** 0.5
    added = ridge * (rows.square().sum() / len(d)).clamp_min(1e-12)
    if len(own):
        rows = torch.cat([rows, own / len(own) ** 0.5])
    inner = rows @ rows.T + added * torch.eye(len(rows), dtype=d.dtype)
    u: Tensor = (d - rows.T @ torch.linalg.solve(inner, rows @ d)) / added
    return u


@torch.no_grad()
def inputs_of(shown: OnPixels, path: str, pixels: Tensor, way: Way | None = None) -> Tensor:
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
            f"erase: expected a classifier {path} that takes one vector an image, got {shapes} for {len(pixels)} images"
        )
    return torch.cat(seen)


DEFENCES.add(Erase.name, Erase)
