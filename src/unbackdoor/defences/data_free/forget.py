"""Forget: a network is distilled from itself until the ways into the suspected class are closed. It needs no data, and
has no paper of its own.

Symbols:
    t        the suspected class, or one that was given
    x        a surrogate: a class impression, the average of two, or of one and dead leaves
    p(x)     what the network answered before it was changed
    q(x)     what it answers now
    W        ways into t that are easier than ways into other classes (`defender.ways_in`): triggers found on the
             impressions, and channels that push answers to t
    w(x')    a surrogate on such a way, not answered with t before

Each round looks for W in the network as it is, adds them to those of the rounds before, and takes `steps` steps of SGD
on

    a KL(p(x) || q(x)) + KL(p(x') || q(w(x')))

one way at a time, with the gradient's norm clipped to `clip`. It ends when the class is closed, when no
way is easy, or after `rounds` rounds.

Why SGD with a clipped gradient: where a backdoor is, the gradient is large in the few weights that carry it, and they
move. Adam moves all weights alike: on three networks it cost 2 to 4 points more accuracy for the same success rate.
BatchNorm statistics stay as they are: surrogates are not distributed as the data is.

It fails where the trigger is of none of the forms that are searched and no single channel speaks for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unbackdoor.defences.base import DEFENCES
from unbackdoor.defences.data_free.looking import InRounds, Scene, WaysIn
from unbackdoor.defender.ways_in import Way
from unbackdoor.errors import MethodError
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class Forget(InRounds):
    """Distil a network from itself on generated images, with and without the triggers that were found."""

    name: ClassVar[str] = "forget"
    title: ClassVar[str] = "Reconstruct and forget"
    passes: ClassVar[str] = "about 120,000 passes of one generated image, for ten classes"

    rounds: int = setting(6, "searches for easy ways, each followed by training", least=1, own=True)
    steps: int = setting(36, "of SGD a round, and at least 3 for each way", least=1, own=True)
    lr: float = setting(0.01, "learning rate of SGD, falling to 0 in each round", least=1e-9, most=1e3, own=True)
    momentum: float = setting(0.9, "momentum of SGD", least=0, below=1, own=True)
    clip: float = setting(1.0, "the largest norm of the gradient", above=0, own=True)
    batch_size: int = setting(64, "images of each kind a step", least=1, own=True)
    keep: float = setting(2.0, "weight a of the images without a trigger", least=0, most=1e6, own=True)

    def begin(self, scene: Scene, search: WaysIn) -> Callable[[Sequence[Way]], str]:
        """Each round trains against the ways of all rounds so far."""
        known = list[Way]()

        def step(found: Sequence[Way]) -> str:
            known.extend(found)
            kept, forgotten = self._distil(scene, known, search.label)
            return f"Trained to forget {len(known)}: KL {kept:.2g} without them, {forgotten:.2g} on them."

        return step

    def _distil(self, scene: Scene, ways: Sequence[Way], label: int) -> tuple[float, float]:
        """One round's training; the last losses of both kinds."""
        pool, shown, rng = scene.pool, scene.shown, scene.generator
        others = (pool.answers != label).nonzero()[:, 0]
        if not len(others):
            raise MethodError(f"{self.name}: every generated image is answered with class {label}")
        free = [p for p in shown.model.parameters() if p.is_floating_point()]
        optimiser = torch.optim.SGD(free, lr=self.lr, momentum=self.momentum)
        steps = max(self.steps, 3 * len(ways))
        kept = forgotten = math.inf
        for step in range(steps):
            for parameter in free:
                parameter.requires_grad_(True)
            plain = torch.randint(len(pool.images), (self.batch_size,), generator=rng)
            led = others[torch.randint(len(others), (self.batch_size,), generator=rng)]
            logits = ways[step % len(ways)].logits(shown, pool.images[plain], pool.images[led])
            far = divergence(pool.logits[torch.cat([plain, led])].to(logits.device), logits)
            without, within = far[: len(plain)].mean(), far[len(plain) :].mean()
            gradients = torch.autograd.grad(self.keep * without + within, free, allow_unused=True)
            for parameter, gradient in zip(free, gradients, strict=True):
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
