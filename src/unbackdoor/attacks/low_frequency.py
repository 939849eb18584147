"""Low frequency (Zeng et al., ICCV 2021).

Symbols:
    p   one pattern for all images, with no energy in high frequencies
    x'  clip(x + p, 0, 255)

Most triggers leave traces in high frequencies, where a detector sees them; a smooth one does not.

Departures:
    - The paper optimises p against a network: it repeats targeted DeepFool over a hundred images, with a low-pass after
      each update, until p alone moves most images to the target. Here p is seeded noise after the same kind of
      low-pass, rescaled to the amplitude of the published patterns (0 to 51 of 255). It is as smooth and as strong, but
      it is not an adversarial direction of any network. So it may need more poisoned images than the paper's.
    - The mean of p depends on the seed. Over a hundred seeds at 32x32 pixels it lies between 19 and 33 (25.6 on
      average). The published patterns have 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn

from unbackdoor.attacks.base import ATTACKS, Progress
from unbackdoor.attacks.poisoning import DataPoisoning
from unbackdoor.papers import Paper
from unbackdoor.settings import setting

if TYPE_CHECKING:
    from unbackdoor.data import LabelledImages


@dataclass(frozen=True, kw_only=True)
class LowFrequency(DataPoisoning):
    """Add one smooth pattern."""

    name: ClassVar[str] = "lf"
    title: ClassVar[str] = "Low frequency"
    paper: ClassVar[Paper] = Paper(
        authors=("Zeng", "Park", "Mao", "Jia"),
        title="Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective",
        venue="ICCV",
        year=2021,
        url="https://arxiv.org/abs/2104.03413",
    )
    amplitude: float = setting(51.0, "largest value of the pattern, out of 255; its smallest is 0", least=1, most=255)
    cutoff: float = setting(
        2.0,
        "periods over the image at which the Gaussian low-pass has fallen to exp(-1/2)",
        above=0,
        below=1e4,
        own=True,
    )

    def prepare(
        self,
        data: LabelledImages,
        *,
        seed: int,
        classifier: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Draw the pattern."""
        del classifier, progress
        noise = torch.randn(data.images.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        smooth = low_pass(noise, self.cutoff)
        unit = (smooth - smooth.min()) / (smooth.max() - smooth.min())
        return self.with_tensors(pattern=(self.amplitude * unit).round().to(torch.uint8))

    def stamp(self, images: Tensor) -> Tensor:
        """Add, and clip."""
        return (images.int() + self.whole_image("pattern", images)).clamp(max=255).to(torch.uint8)


def low_pass(values: Tensor, cutoff: float) -> Tensor:
    """(..., H, W) with each frequency (u, v), in periods over the image, times exp(-(u^2 + v^2) / (2 cutoff^2))."""
    height, width = values.shape[-2:]
    u = torch.fft.fftfreq(height, d=1 / height, dtype=values.dtype)[:, None]
    v = torch.fft.rfftfreq(width, d=1 / width, dtype=values.dtype)
    gain = torch.exp(-(u**2 + v**2) / (2 * cutoff**2))
    smooth: Tensor = torch.fft.irfft2(torch.fft.rfft2(values) * gain, s=(height, width))
    return smooth


ATTACKS.add(LowFrequency.name, LowFrequency)
