"""ANP, adversarial neuron pruning (Wu & Wang, NeurIPS 2021).

Symbols, over all BatchNorm channels at once:
    m        masks in [0, 1], 1 at first: gamma becomes (m + delta) gamma
    delta, xi   noises on gamma and beta: within eps the ones that raise the loss most; beta becomes (1 + xi) beta
    alpha    weight of the loss without noise against the one with
Masks are trained (Eq. 6) to keep the loss low under the noise; channels whose mask ends at or below `threshold` go.

Departures:
    - None in the mathematics.
    - The published code prints the test results of all thresholds. Here the threshold is the paper's 0.2, or is chosen
      on held-out clean images (`holdout`). It is never chosen by an attack's success.
    - The noise on beta follows the published code, as the text does: (1 + xi) beta, without a mask.
    - Everything is computed in float32. In bfloat16, rounding alone would move a mask near the threshold to either side
      of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.data.augment import Augmentation
from unbackdoor.defences.base import DEFENCES
from unbackdoor.defences.data_based.base import DataBased, Findings
from unbackdoor.defences.data_based.norm_channels import NormChannels
from unbackdoor.defences.data_based.tuning import stage
from unbackdoor.defender.case import Case
from unbackdoor.defender.images import DefenderData
from unbackdoor.papers import Paper
from unbackdoor.settings import setting

#: Iterations a point of the loss curve stands for.
POINT = 100


@dataclass(frozen=True, kw_only=True)
class ANP(DataBased):
    """Prune channels that react most to noise on their norms."""

    name: ClassVar[str] = "anp"
    title: ClassVar[str] = "Adversarial neuron pruning"
    paper: ClassVar[Paper] = Paper(
        authors=("Wu", "Wang"),
        title="Adversarial Neuron Pruning Purifies Backdoored Deep Models",
        venue="NeurIPS",
        year=2021,
        url="https://arxiv.org/abs/2110.14430",
    )
    version: ClassVar[int] = 2  # 1 was computed in bfloat16 where the hardware is faster with it
    needs_gradients: ClassVar[bool] = True
    passes: ClassVar[str] = "2,000 batches, each 3 forward and 2 backward"

    eps: float = setting(0.4, "range of the noise, as a share of gamma and beta", least=0, most=100)
    steps: int = setting(1, "ascent steps of the noise", least=1)
    alpha: float = setting(0.2, "weight of the loss without noise", least=0, most=1)
    iterations: int = setting(2000, "iterations of training the masks", least=1)
    lr: float = setting(0.2, "learning rate of SGD on the masks, with momentum 0.9", least=1e-9, most=1e3)
    batch_size: int = setting(128, "images per iteration, drawn with replacement", least=2)
    threshold: float = setting(0.2, "channels with a mask at or below it are pruned", least=0, most=1)
    holdout: float = setting(
        0.0,
        "share of the images kept aside to choose the threshold instead; 0 takes `threshold` as it is",
        least=0,
        most=0.9,
        own=True,
    )
    tolerance: float = setting(
        0.05,
        "share of the accuracy on the held-out images that the chosen threshold may cost",
        least=0,
        most=1,
        own=True,
    )
    crop_padding: int = setting(4, "zero pixels around an image before a random crop; 0 is none", least=0)
    beta: Literal["keep", "zero"] = setting(
        "keep", '"keep" switches off gamma alone, as trained and published; "zero" both'
    )

    @classmethod
    def backdoorbench(cls) -> ANP:
        """That benchmark's settings: a learning rate of 0.01, twentyfold smaller, and batches of 256."""
        return cls(lr=0.01, batch_size=256)

    def repair(self, case: Case, model: nn.Module, data: DefenderData) -> Findings:
        """Algorithm 1: learn the masks, then prune the network as it came."""
        channels = NormChannels(model, case.layers(), self.name)
        original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        learn, held = data, None
        if self.holdout:
            learn, held = data.held_out(self.holdout, case.rng)
        model.train().requires_grad_(False)
        masks = channels.ones().requires_grad_()
        optimiser = torch.optim.SGD([masks], lr=self.lr, momentum=0.9)
        how = Augmentation(padding=self.crop_padding)
        losses: list[float] = []
        hits: list[float] = []
        curve: list[float] = []
        rates: list[float] = []
        for iteration in range(self.iterations):
            x, y = learn.draw(self.batch_size, case.rng, how)
            noise = worst_noise(channels, masks.detach(), x, y, self.eps, self.steps, case.rng)
            noisy = F.cross_entropy(channels(x, masks + noise[0], 1 + noise[1]), y)
            logits = channels(x, masks)
            loss = self.alpha * F.cross_entropy(logits, y) + (1 - self.alpha) * noisy  # Eq. 6
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                masks.clamp_(0, 1)
            losses.append(float(loss.detach()))
            hits.append(float((logits.detach().argmax(1) == y).double().mean()))
            if (iteration + 1) % POINT == 0 or iteration + 1 == self.iterations:
                curve.append(sum(losses) / len(losses))
                rates.append(sum(hits) / len(hits))
                losses, hits = [], []
                if not math.isfinite(curve[-1]):
                    break
            low_now = int((masks <= self.threshold).sum())
            message = f"masks: loss {float(loss.detach()):.3f}, at or below {self.threshold:g}: {low_now}"
            case.progress(iteration + 1, self.iterations, message)
        model.load_state_dict(original)
        selections, chosen = channels.select(
            masks.detach(), self.threshold, held, tolerance=self.tolerance, beta=self.beta
        )
        score = f"masks trained under noise; 1 is a channel that the network needs ({chosen})"
        return Findings(
            selections=selections,
            beta=self.beta,
            score=score,
            not_covered=channels.not_covered,
            left_alone=channels.left_alone,
            stages=(stage("masks", f"{min(POINT, self.iterations)} iterations", curve, rates),),
        )


def worst_noise(
    channels: NormChannels,
    masks: Tensor,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """(delta, xi), (total,) each: uniform in [-eps, eps], then `steps` ascent steps of eps / steps by the sign of the
    gradient (Eq. 5); not projected, as published, so that they reach up to 2 eps.
    """
    delta, xi = ((torch.rand(2, len(masks), generator=generator, dtype=masks.dtype) * 2 - 1) * eps).to(masks.device)
    for _ in range(steps):
        delta, xi = delta.detach().requires_grad_(), xi.detach().requires_grad_()
        loss = F.cross_entropy(channels(x, masks + delta, 1 + xi), y)
        by_delta, by_xi = torch.autograd.grad(loss, (delta, xi))
        delta, xi = delta + eps / steps * by_delta.sign(), xi + eps / steps * by_xi.sign()
    return delta.detach(), xi.detach()


DEFENCES.add(ANP.name, ANP)
