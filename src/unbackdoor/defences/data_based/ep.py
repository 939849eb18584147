"""EP, entropy-based pruning (Zheng et al., NeurIPS 2022).

Symbols, per BatchNorm with c channels:
    z_ij     channel j's pre-activation on image i (the largest over its map), standardised over the images
    h        width of the histogram's bins: `bin_width`
    H_j      entropy of the histogram of z_.j
    u        channels with H_j < mean - u * std (sample) are pruned

It wants the *training images*, poisoned ones among them: a backdoor channel answers those and the others differently,
and its two-humped histogram has a low entropy. Clean images alone show it nothing.

Departures:
    - A channel that is constant over the images cannot be standardised. It is left out of mean and std, and kept.
    - By default every value is counted. A value on the edge of two bins falls into the upper one, and the last bin is
      as wide as the others. The published code takes whole bins only and is strict on both edges. So it leaves out the
      smallest value of a layer, and the values in a last piece narrower than a bin. `EP.as_published()` and
      `EP.backdoorbench()` do the same (`histogram="published"`). Shares are of all images there too, so values that are
      not counted still divide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from unbackdoor.data.augment import Augmentation
from unbackdoor.defences.base import DEFENCES
from unbackdoor.defences.data_based.base import DataBased, Findings
from unbackdoor.defences.data_based.norm_channels import NormChannels, norm_inputs
from unbackdoor.defender.case import Case, Needs
from unbackdoor.defender.images import PLAIN, DefenderData
from unbackdoor.errors import MethodError
from unbackdoor.papers import PRE_ACTIVATIONS, Paper
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class EP(DataBased):
    """Prune channels that answer the training images in two humps."""

    name: ClassVar[str] = "ep"
    title: ClassVar[str] = "Entropy-based pruning"
    paper: ClassVar[Paper] = PRE_ACTIVATIONS
    needs: ClassVar[Needs] = "training images"
    needs_labels: ClassVar[bool] = False
    passes: ClassVar[str] = "1 forward pass of one batch"
    version: ClassVar[int] = 2  # 1 saw WaNet, BPP and Input-Aware without the images that stand beside the trigger

    u: float = setting(3.0, "channels with an entropy below mean - u * std are pruned", least=0)
    bin_width: float = setting(
        0.01, "width of the histogram's bins, in standard deviations of a channel", least=1e-4, most=10
    )
    batch_size: int = setting(500, "how many of the images are used, in one batch", least=2)
    crop_padding: int = setting(
        4, "zero pixels around an image before a random crop, as in training; 0 shows images as they are", least=0
    )
    beta: Literal["keep", "zero"] = setting(
        "keep", '"keep" switches off gamma alone, as published: the channel becomes the constant beta; "zero" both'
    )
    histogram: Literal["whole", "published"] = setting(
        "whole",
        '"whole" counts every value; "published" leaves out the smallest, and those in the last partial bin',
        own=True,
        added=True,
    )

    @classmethod
    def as_published(cls) -> EP:
        """The authors' code: its histogram leaves values out."""
        return cls(histogram="published")

    @classmethod
    def backdoorbench(cls) -> EP:
        """That benchmark's settings: bins of 0.1, the authors' histogram, a batch of 256, gamma and beta both off."""
        return cls(bin_width=0.1, batch_size=256, beta="zero", histogram="published")

    def repair(self, case: Case, model: nn.Module, data: DefenderData) -> Findings:
        """Sec. 4.2 of the paper, "EP"."""
        channels = NormChannels(model, case.layers(), self.name)
        seen: dict[str, list[Tensor]] = {}

        def record(path: str, x: Tensor) -> None:
            seen.setdefault(path, []).append(x.amax(tuple(range(2, x.ndim))) if x.ndim > 2 else x)

        how = Augmentation(padding=self.crop_padding) if self.crop_padding else PLAIN
        images = data.images[torch.randperm(len(data), generator=case.rng)[: self.batch_size]]
        with torch.no_grad(), norm_inputs(model, channels.norms, record) as not_covered:
            model(data.augmented(images, how, case.rng))
        case.progress(1, 1, "pre-activations recorded")
        entropies = {
            norm.path: entropy(torch.cat(seen[norm.path]), self.bin_width, whole=self.histogram == "whole")
            for norm in channels.norms
            if norm.path in seen
        }
        for path, values in entropies.items():
            if int(torch.isfinite(values).sum()) < 2:
                raise MethodError(f"ep: {path}: its channels do not vary over {len(images)} images; give more images")
        h = channels.population(entropies)
        threshold = h.at(-self.u)
        return Findings(
            selections=tuple(h.selections(low=h.varied & (h.values < h.each(threshold)), lower=threshold)),
            beta=self.beta,
            score="the entropy of a channel's values over the images that the method was given",
            not_covered=(*channels.not_covered, *not_covered),
            left_alone=channels.left_alone,
        )


def entropy(features: Tensor, bin_width: float, *, whole: bool = True) -> Tensor:
    """(N, C) -> (C,) float64: the entropy, in nats, of each channel's histogram after standardising.

    The bins reach from the smallest to the largest value of all channels. NaN for a channel that is constant.

    Args:
        whole: whether all values are counted; else those strictly inside a bin that ends before the largest value.
    """
    x = features.double()
    std = x.std(0)
    constant = ~(std > 0)
    z = torch.where(constant, 0.0, (x - x.mean(0)) / std)
    places = (z - z.min()) / bin_width
    bins = places.long()
    n, channels = bins.shape
    width = int(bins.max()) + 1
    flat = bins + torch.arange(channels, device=bins.device) * width
    if not whole:
        flat = flat[(places > bins) & (bins + 1 <= places.max())]
    used, counts = torch.unique(flat, return_counts=True)
    share = counts.double() / n
    result = torch.zeros(channels, dtype=torch.float64, device=x.device)
    result.index_add_(0, used // width, -share * share.log())
    return result.masked_fill(constant, torch.nan)


DEFENCES.add(EP.name, EP)
