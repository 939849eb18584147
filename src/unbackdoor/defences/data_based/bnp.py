"""BNP, BatchNorm statistics-based pruning (Zheng et al., NeurIPS 2022).

Symbols, per BatchNorm with c channels:
    m1, v1   mean and variance of channel j's pre-activations on clean images
    m2, v2   the running mean and variance, which the (poisoned) training set left
    KL_j     of N(m1, v1) from N(m2, v2)
    u        channels with KL_j > mean + u * std (sample) are pruned

Departures:
    - One benchmark's BNP overwrites the statistics of the clean images with those of poisoned ones, and doubles the log
      term. Here the images are the defender's alone, and the formula is that of two normal distributions.
    - eps is added to both variances, so a channel that never varied has a finite divergence. A channel that is constant
      in both has a divergence of 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.data.augment import Augmentation
from unbackdoor.defences.base import DEFENCES
from unbackdoor.defences.data_based.base import DataBased, Findings
from unbackdoor.defences.data_based.norm_channels import NormChannels, norm_inputs
from unbackdoor.defender.case import Case
from unbackdoor.defender.images import PLAIN, DefenderData
from unbackdoor.papers import PRE_ACTIVATIONS, Paper
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class BNP(DataBased):
    """Prune channels whose pre-activations on clean images are not distributed as they were in training."""

    name: ClassVar[str] = "bnp"
    title: ClassVar[str] = "BatchNorm statistics-based pruning"
    paper: ClassVar[Paper] = PRE_ACTIVATIONS
    needs_labels: ClassVar[bool] = False
    passes: ClassVar[str] = "1 forward pass of one batch"

    u: float = setting(3.0, "channels with a divergence above mean + u * std are pruned", least=0)
    batch_size: int = setting(500, "how many of the images are used, in one batch", least=2)
    crop_padding: int = setting(
        4, "zero pixels around an image before a random crop, as in training; 0 shows images as they are", least=0
    )
    beta: Literal["keep", "zero"] = setting(
        "keep", '"keep" switches off gamma alone, as published: the channel becomes the constant beta; "zero" both'
    )

    @classmethod
    def backdoorbench(cls) -> BNP:
        """That benchmark's settings: a batch of 256, gamma and beta both switched off."""
        return cls(batch_size=256, beta="zero")

    def repair(self, case: Case, model: nn.Module, data: DefenderData) -> Findings:
        """Sec. 4.2 of the paper, "BNP"."""
        channels = NormChannels(model, case.layers(), self.name)
        seen: dict[str, list[Tensor]] = {}

        def record(path: str, x: Tensor) -> None:
            seen.setdefault(path, []).append(moments(x))

        how = Augmentation(padding=self.crop_padding) if self.crop_padding else PLAIN
        images = data.images[torch.randperm(len(data), generator=case.rng)[: self.batch_size]]
        with torch.no_grad(), norm_inputs(model, channels.norms, record) as not_covered:
            model(data.augmented(images, how, case.rng))
        case.progress(1, 1, "statistics recorded")
        tensors = model.state_dict()
        divergences = {
            norm.path: divergence(
                *combined(seen[norm.path]), tensors[norm.mean], tensors[norm.var] + norm.eps, norm.eps
            )
            for norm in channels.norms
            if norm.path in seen
        }
        kl = channels.population(divergences)
        threshold = kl.at(self.u)
        return Findings(
            selections=tuple(kl.selections(high=kl.varied & (kl.values > kl.each(threshold)), upper=threshold)),
            beta=self.beta,
            score="the divergence of a channel's values on clean images from its running statistics",
            not_covered=(*channels.not_covered, *not_covered),
            left_alone=channels.left_alone,
        )


def divergence(m1: Tensor, v1: Tensor, m2: Tensor, v2: Tensor, eps: float = 0.0) -> Tensor:
    """KL(N(m1, v1) || N(m2, v2)), channel by channel (Eq. 5), (C,) float64.

    Args:
        eps: added to v1 as it was to v2.
    """
    m1, v1, m2, v2 = m1.double(), v1.double() + eps, m2.double(), v2.double()
    return 0.5 * (v2 / v1).log() + (v1 + (m1 - m2) ** 2) / (2 * v2) - 0.5


def moments(x: Tensor) -> Tensor:
    """(N, C, ...) -> (3, C) number of values, mean, variance (unbiased) of each channel."""
    mean, var = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    F.batch_norm(x, mean, var, training=True, momentum=1.0)  # several times as fast as torch.var_mean
    return torch.stack([torch.full_like(mean, x.numel() / x.shape[1]), mean, var])


def combined(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over several calls of the same norm."""
    if len(parts) == 1:
        return parts[0][1], parts[0][2]
    n, mean, var = (row.double() for row in torch.stack(parts, dim=1))  # (calls, C) each
    whole = (n * mean).sum(0) / n.sum(0)
    squares = ((n - 1) * var + n * (mean - whole) ** 2).sum(0)
    return whole, squares / (n.sum(0) - 1)


DEFENCES.add(BNP.name, BNP)
