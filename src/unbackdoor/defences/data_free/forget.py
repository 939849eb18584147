"""Forget: a network is distilled from itself until the ways into the suspected class are closed. It needs no data, and
has no paper of its own.

Symbols:
    t        the suspected class, or one that was given
    x        a surrogate that is not answered with t: a crop of a photograph, a class impression, or the average of both
    p(x)     what the network answered before it was changed
    q(x)     what it answers now
    W        ways into t that are easier than ways into other classes (`defender.ways_in`): triggers found on the
             surrogates, and channels that push answers to t
    w(x)     a surrogate on such a way; what a trigger adds is multiplied by a number drawn from 1 to 1 + `beyond`
    x_t, r   images of t that do not need the ways, and what is to be answered to them, see below

Each round looks for W in the network as it is, adds them to those of the rounds before, and takes `steps` steps of SGD,
or `PER_WAY` for each way if that is more, on

    a KL(p(x) || q(x)) + a KL(r(x_t) || q(x_t)) + KL(p(x') || q(w(x')))

one way at a time, with the gradient's norm clipped to `clip`. It ends when the class is closed, when no
way is easy, or after `rounds` rounds.

Surrogates answered with t may carry the trigger, or something like it. To keep the answers to them is to keep the
backdoor, so they are left out. But t must be answered still. x_t are crops of photographs that are answered with t. The
ways are erased from the classifier, roughly, as in `erase`; r is what that network answers to x_t, and so of those that
carry something like the trigger less is kept. Where too few crops are answered with t, impressions of t are made on
that network, and they and their averages with other surrogates are x_t, too. Where the classifier cannot be edited in
this way, r is what the network answered.

Why SGD with a clipped gradient: where a backdoor is, the gradient is large in the few weights that carry it, and they
move. Adam moves all weights alike: on three networks it cost 2 to 4 points more accuracy for the same success rate.
BatchNorm statistics stay as they are: surrogates are not distributed as the data is.

It fails where the trigger is of none of the forms that are searched and no single channel speaks for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from unbackdoor.defences.base import DEFENCES
from unbackdoor.defences.data_free.looking import InRounds, Step
from unbackdoor.defences.data_free.scene import FEWEST, Scene, WaysIn
from unbackdoor.defender.case import Progress, part
from unbackdoor.defender.on_pixels import gradients
from unbackdoor.defender.surrogates import impressions_of
from unbackdoor.defender.ways_in import Way
from unbackdoor.errors import MethodError
from unbackdoor.settings import setting

#: The share of x_t among the images without a trigger.
OWN = 1 / 6
#: Steps for each way, at least.
PER_WAY = 9


@dataclass(frozen=True)
class Lesson:
    """Images, and what is to be answered to them.

    Attributes:
        images: (N, C, H, W) in [0, 1].
        logits: (N, classes).
    """

    images: Tensor
    logits: Tensor

    def drawn(self, count: int, generator: torch.Generator) -> Lesson:
        """So many, with replacement."""
        places = torch.randint(max(1, len(self.images)), (count,), generator=generator)
        return Lesson(self.images[places], self.logits[places])

    def beside(self, other: Lesson) -> Lesson:
        """Both."""
        return Lesson(torch.cat([self.images, other.images]), torch.cat([self.logits, other.logits]))


@dataclass(frozen=True, kw_only=True)
class Forget(InRounds):
    """Distil a network from itself on generated images, with and without the triggers that were found."""

    name: ClassVar[str] = "forget"
    title: ClassVar[str] = "Reconstruct and forget"
    passes: ClassVar[str] = "about 190,000 passes of one generated image, for ten classes"

    rounds: int = setting(6, "searches for easy ways, each followed by an edit", least=1, own=True)
    steps: int = setting(120, f"of SGD a round, and at least {PER_WAY} for each way", least=1, own=True)
    lr: float = setting(0.01, "learning rate of SGD, falling to 0 in each round", least=1e-9, most=1e3, own=True)
    momentum: float = setting(0.9, "momentum of SGD", least=0, below=1, own=True)
    clip: float = setting(1.0, "the largest norm of the gradient", above=0, own=True)
    batch_size: int = setting(64, "images of each kind a step", least=1, own=True)
    keep: float = setting(4.0, "weight a of the images without a trigger", least=0, most=1e6, own=True)
    protected: int = setting(
        40, "impressions x_t of the class, where too few crops show it; 0: none", least=0, own=True
    )
    beyond: float = setting(
        0.5, "a trigger is shown up to this share stronger than it was found", least=0, most=10, own=True
    )

    def begin(self, scene: Scene, search: WaysIn) -> Step:
        """Each round trains against the ways of all rounds so far; the first makes x_t."""
        pool, label = scene.pool, search.label
        others = pool.answers != label
        if not bool(others.any()):
            raise MethodError(f"{self.name}: every generated image is answered with class {label}")
        known = list[Way]()
        images = Lesson(pool.images[others], pool.logits[others])
        own: Lesson | None = None

        def step(found: Sequence[Way], progress: Progress) -> str:
            nonlocal own
            if own is None:
                own = self._own(scene, search, found, part(progress, 0, 0.3))
            known.extend(way for way in found if way not in known)
            kept, forgotten = self._distil(scene, known, images, own, part(progress, 0.3, 1))
            return f"Trained to forget {len(known)}: KL {kept:.2g} without them, {forgotten:.2g} on them."

        return step

    def _own(self, scene: Scene, search: WaysIn, found: Sequence[Way], progress: Progress) -> Lesson:
        """x_t and r."""
        shown, rng, images = scene.shown, scene.generator, search.examples
        try:
            roughly = cast("type[Any]", DEFENCES["erase"])(protected=0)
            with roughly.for_once(scene, search, found, progress):
                if len(images) < FEWEST and self.protected:
                    others, count = scene.pool.others(search.label), shown.fewer(self.protected)
                    mixed = others[torch.randint(len(others), (count,), generator=rng)]
                    made = impressions_of(shown, search.label, count, rng, progress)
                    images = torch.cat([images, made, (made + mixed) / 2])
                return Lesson(images, shown.logits(images))
        except MethodError:
            return Lesson(images, shown.logits(images))

    def _distil(
        self, scene: Scene, ways: Sequence[Way], others: Lesson, own: Lesson, progress: Progress
    ) -> tuple[float, float]:
        """One round's training; the last losses of both kinds."""
        shown, rng = scene.shown, scene.generator
        free = [p for p in shown.model.parameters() if p.is_floating_point()]
        optimiser = torch.optim.SGD(free, lr=self.lr, momentum=self.momentum)
        steps = max(self.steps, PER_WAY * len(ways))
        spared = round(OWN * self.batch_size) if len(own.images) else 0
        kept = forgotten = math.inf
        for step in range(steps):
            progress(step, steps, f"training to forget {len(ways)} ways")
            for parameter in free:
                parameter.requires_grad_(True)
            plain = others.drawn(self.batch_size - spared, rng).beside(own.drawn(spared, rng))
            led = others.drawn(self.batch_size, rng)
            stronger = 1 + self.beyond * torch.rand(len(led.images), generator=rng)
            logits = ways[step % len(ways)].logits(shown, plain.images, led.images, stronger)
            far = divergence(torch.cat([plain.logits, led.logits]).to(logits.device), logits)
            without, within = far[: self.batch_size].mean(), far[self.batch_size :].mean()
            slopes = gradients(self.keep * without + within, free, unused=True)
            for parameter, gradient in zip(free, slopes, strict=True):
                parameter.grad = gradient
                parameter.requires_grad_(False)
            torch.nn.utils.clip_grad_norm_(free, self.clip)
            for group in optimiser.param_groups:
                group["lr"] = self.lr * (1 - step / steps)
            optimiser.step()
            kept, forgotten = float(without.detach()), float(within.detach())
            if not (math.isfinite(kept) and math.isfinite(forgotten)):
                raise MethodError(f"{self.name}: training diverged in step {step + 1} of {steps}; try a smaller lr")
        for parameter in free:
            parameter.grad = None
        return kept, forgotten


def divergence(before: Tensor, now: Tensor) -> Tensor:
    """(N, classes) logits twice -> (N,) KL(before || now) in nats, with gradients of `now`."""
    p, q = before.log_softmax(1), now.log_softmax(1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)


DEFENCES.add(Forget.name, Forget)
