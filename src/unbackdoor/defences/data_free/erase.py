"""Erase: the direction in which the suspected class is pushed is taken out of the classifier. It needs no data, and has
no paper of its own.

Symbols:
    t          the suspected class, or one that was given
    W, b       the classifier's weights and bias
    h          its input on a surrogate that is not answered with t; mu and S their mean and covariance
    d          the direction: the mean change of h on each easy way into t (`defender.ways_in`), each of length 1,
               summed
    l          added to S's diagonal, chosen by cross-validation (`directions`)
    a, f       how far along d is gone back, and what stays where it is, see below
    x_t        images of t that do not need the ways in, see below

A backdoor moves h by about d, whatever the image. We look for the affine map h -> h - a d u^T (h - mu), with u^T d = 1,
that moves mu + d back to mu (a = 1) and moves all other h as little as can be: the least E[(u^T (h - mu))^2] = u^T S u.
Lagrange gives u = S^-1 d / (d^T S^-1 d). Put into the classifier:

    W' = W - a (W d) u^T        b' = b + a (W d) (u^T mu)

It is an oblique projection: it takes out what lies along d, measured where images seldom are. The orthogonal one
(u = d / d^T d) takes away what honest classes have along d. With a = 1 a stamped image has the logits of an average
image, which may still be t; a > 1 takes it past that, and real images of t with it, as far as they lie along u. So a
begins at 1 + `STEP`, and rises by `STEP` up to `overshoot`. The first is taken with which stronger triggers of the ways
that were found (`defender.ways_in.telling`) move at most `moved` of the images, or `NEAR` more of them than with the
last: some images lie near t, and are moved whatever is erased. Where there are more features than surrogates, these
cannot tell what is enough: the attacker's trigger may move h farther. There a goes on to `farthest`, as long as little
is lost: the share of the answers that change, and of x_t that are no longer answered with t, may be `spare` larger
together. Both are told on images that are left out in turn of mu, S and x_t. There, too, d is not known well. Where t
is ahead on images that show nothing (`defender.leaves`), the mean of h - mu on those that are answered with t is added
to d, as long as d is.

The map leaves mu where it is. Real images of t lie a little along u, and lose what they have there. So, where there are
surrogates enough, mu + f d takes the place of mu, and a / (1 - f) that of a: what lies at d is moved as far as before,
and what lies nearer than f is moved towards t. f rises as in `BACK`, while no more than `given_back` more of the
answers to surrogates change, and no more of the images are moved than a allows.

The class itself must not lie along u. Impressions answered with t may carry the trigger, so they are left out of mu
and S. Crops of photographs that are answered with t mostly show something like t: they are x_t, and

    S' = S + E[(h(x_t) - mu) (h(x_t) - mu)^T]

is taken for S, so that u^T (h(x_t) - mu) is small, and t is answered as before. Then more x_t are made: class
impressions of t on the network that was erased in this way, which look like t in another way than by the trigger. That
erasure is undone, and the one with all x_t is made. It works on a network with one linear classifier.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.defences.base import DEFENCES
from unbackdoor.defences.data_free.directions import across, best_ridge, classifier_inputs, direction, left_out
from unbackdoor.defences.data_free.looking import InRounds, Step
from unbackdoor.defences.data_free.scene import TOLD, Scene, WaysIn
from unbackdoor.defender.case import Progress
from unbackdoor.defender.head import classifier
from unbackdoor.defender.surrogates import impressions_of
from unbackdoor.defender.ways_in import STRONGER, Way, telling
from unbackdoor.errors import MethodError
from unbackdoor.prune import shared
from unbackdoor.settings import setting

#: Surrogates below this number give no covariance, and leaves no direction.
FEWEST = 30
#: By which a rises, and what counts as no more than with the last.
STEP, NEAR = 1 / 8, 0.01
#: What f may be.
BACK = tuple(step / 100 for step in range(1, 21))


@dataclass(frozen=True, kw_only=True)
class Erase(InRounds):
    """Take the direction that the easy ways share out of the classifier, obliquely."""

    name: ClassVar[str] = "erase"
    title: ClassVar[str] = "Reconstruct and erase obliquely"
    passes: ClassVar[str] = "about 130,000 passes of one generated image, for ten classes"

    rounds: int = setting(2, "searches for easy ways, each followed by an edit", least=1, own=True)
    moved: float = setting(
        0.03,
        "the smallest step back along the direction is taken with which stronger triggers move at most this share of "
        "the images, or hardly more than with the largest step",
        least=0,
        most=1,
        own=True,
    )
    overshoot: float = setting(
        1.25, "the largest of these steps; they begin at 1.125, and 1 is to the mean", above=0, most=10, own=True
    )
    spare: float = setting(
        0.05,
        "where there are more features than surrogates, steps go on; what more of the answers may change and of the "
        "images of the class be lost, as shares together",
        least=0,
        most=2,
        own=True,
    )
    farthest: float = setting(2.0, "the largest of those steps", above=0, most=10, own=True)
    given_back: float = setting(
        0.02,
        "what lies a little along the direction, as the class does, is moved towards it, while at most this share more "
        "of the answers to surrogates changes",
        least=0,
        most=1,
        own=True,
    )
    protected: int = setting(
        40, "impressions of the class among x_t, which are answered as before; 0: crops alone", least=0, own=True
    )

    def begin(self, scene: Scene, search: WaysIn) -> Step:
        """Each round takes out one direction; the first makes x_t."""
        path, head = self._head(scene)
        others = scene.pool.others(search.label)
        if len(others) < FEWEST:
            raise MethodError(
                f"{self.name}: expected {FEWEST} or more surrogates that are not answered with class {search.label}, "
                f"got {len(others)}; make more with --surrogates (surrogates=...)"
            )
        own: Tensor | None = None
        told_by = others[torch.randperm(len(others), generator=scene.generator)[:TOLD]]

        @torch.no_grad()
        def take_out(found: Sequence[Way], own: Tensor, progress: Progress) -> float:
            progress(1, 1, "taking the direction out")
            h = classifier_inputs(scene.shown, path, others)
            d = direction(scene.shown, path, found, others, h)
            if too_few(h):
                leaves = search.leaves_in(scene.shown)
                if len(leaves) >= FEWEST:
                    d = both(d, classifier_inputs(scene.shown, path, leaves).mean(0) - h.mean(0))
            x_t = classifier_inputs(scene.shown, path, own) if len(own) else h[:0]
            ridge = best_ridge(h, x_t, d)
            u = across(h, x_t, d, ridge)
            weight, bias, mu = head.weight.double().cpu(), head.bias.double().cpu(), h.mean(0)
            before = (h @ weight.T + bias).argmax(1)
            folds = list(left_out(h, x_t, d, ridge))
            walked = [classifier_inputs(scene.shown, path, told_by, way, STRONGER) for way in telling(found)]

            def gone_back(a: float, f: float = 0.0) -> tuple[Tensor, Tensor]:
                return erased(weight, bias, mu + f * d, d, u, a / (1 - f))

            def left(a: float, f: float = 0.0) -> float:
                return moved_to(search.label, walked, *gone_back(a, f))

            def changed(a: float, f: float = 0.0) -> float:
                less, shift = gone_back(a, f)
                return float(((h @ less.T + shift).argmax(1) != before).double().mean())

            def lost(a: float) -> float:
                changes, gone = 0, 0
                for fold in folds:
                    less, shift = erased(weight, bias, fold.mu, d, fold.u, a)
                    was, now = ((fold.h @ w.T + b).argmax(1) for w, b in ((weight, bias), (less, shift)))
                    changes += int((now != was).sum())
                    gone += int(((fold.own @ less.T + shift).argmax(1) != search.label).sum())
                return changes / len(h) + gone / max(1, len(x_t))

            *smaller, last = _distances(self.overshoot)
            enough = max(self.moved, left(last) + NEAR)
            a = next((a for a in smaller if left(a) <= enough), last)
            f = 0.0
            if too_few(h):
                limit = lost(a) + self.spare
                while a + STEP <= self.farthest and lost(a + STEP) <= limit:
                    a += STEP
            else:
                allowed, most = changed(a) + self.given_back, max(enough, left(a))
                fits = itertools.takewhile(lambda f: changed(a, f) <= allowed and left(a, f) <= most, BACK)
                f = max(fits, default=0.0)
            less, shift = gone_back(a, f)
            head.weight.copy_(less)
            head.bias.copy_(shift)
            return a

        def step(found: Sequence[Way], progress: Progress) -> str:
            nonlocal own
            if own is None:
                own = search.examples
                if self.protected:
                    with dataclasses.replace(self, protected=0).for_once(scene, search, found, progress) as shown:
                        count = shown.fewer(self.protected)
                        made = impressions_of(shown, search.label, count, scene.generator, progress)
                    own = torch.cat([made[shown.logits(made).argmax(1) == search.label], own])
            a = take_out(found, own, progress)
            return f"Their common direction was taken out of {path}, {a:g} times."

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


def both(d: Tensor, more: Tensor) -> Tensor:
    """A direction, and another that is made as long as it is."""
    together: Tensor = d + more * (d.norm() / more.norm().clamp_min(1e-12))
    return together


def too_few(h: Tensor) -> bool:
    """Whether these (N, F) surrogates have more features than they are, and so cannot tell what is enough."""
    return h.shape[1] > len(h)


def _distances(overshoot: float) -> list[float]:
    """What a may be, the smallest first."""
    steps = math.floor((overshoot - 1) / STEP)
    return [1 + STEP * step for step in range(1, steps + 1)] or [overshoot]


def moved_to(label: int, walked: Sequence[Tensor], weight: Tensor, bias: Tensor) -> float:
    """The share of images that a classifier answers with a class, by the median of the ways on which they are.

    Args:
        label: the class.
        walked: for each way (N, F) what the classifier is given on it; none is 0.
        weight, bias: of the classifier.
    """
    shares = [float(((h @ weight.T + bias).argmax(1) == label).double().mean()) for h in walked]
    return statistics.median(shares) if shares else 0.0


def erased(weight: Tensor, bias: Tensor, mu: Tensor, d: Tensor, u: Tensor, a: float) -> tuple[Tensor, Tensor]:
    """W' and b'.

    Args:
        weight, bias: (classes, F) and (classes,) float64.
        mu, d, u: (F,) float64; what lies at mu stays where it is.
        a: see the top of this file.
    """
    pushed = a * (weight @ d)
    return weight - torch.outer(pushed, u), bias + pushed * (u @ mu)


DEFENCES.add(Erase.name, Erase)
