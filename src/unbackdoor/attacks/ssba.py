"""SSBA (Li et al., ICCV 2021).

Symbols:
    b     the attacker's bit string, one a run, drawn from the seed
    E     encoder: (image, string) -> residual in [-1, 1]
    D     decoder: image -> the string's logits
    x'    clip(x + s E(x, b), 0, 255): the change depends on the image, the hidden string does not

E and D are trained together on the data set's own images, with a new random string for each:
    loss = BCE(D(x' + u), b) + lambda mean(E(x, b)^2)                        (image distortion and bit cross-entropy)
u being one level of uniform noise, so that D still reads b after rounding to 8 bits. lambda rises from 0 over the
middle of the training: first the string must be readable at all. Then E is frozen, and one fixed b is the trigger.

Departures:
    - The paper takes StegaStamp's networks, trains them for many epochs on large images, and adds a perceptual loss and
      a critic. Here both networks are small and work at the data set's own resolution. They train for a few hundred
      steps with a squared distortion under a hard bound s, which takes less than a minute on a CPU.
    - The string has the paper's 100 bits at 32x32 pixels. On CIFAR-10 the decoder reads more than 99.9 % of them in
      unseen images that differ from the originals by 9 of 255 (root mean square, 29 dB).
    - All images share about four fifths of the residual's energy. One fifth depends on the image.
    - The distortion's weight is the largest tried at which a backdoor takes at 10 %, measured on training images alone
      (studies/ssba_distortion.py): 0.01 works, 0.03 does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.attacks.base import ATTACKS, Progress
from unbackdoor.attacks.poisoning import DataPoisoning
from unbackdoor.papers import Paper
from unbackdoor.settings import setting

if TYPE_CHECKING:
    from unbackdoor.data import LabelledImages

_BATCH = 32
_STAMP_BATCH = 500
#: lambda is 0 up to the first of these shares of the training, and whole from the second on.
_DISTORTION_FROM, _DISTORTION_TO = 0.3, 0.7


@dataclass(frozen=True, kw_only=True)
class SSBA(DataPoisoning):
    """A string hidden in each image."""

    name: ClassVar[str] = "ssba"
    title: ClassVar[str] = "SSBA"
    paper: ClassVar[Paper] = Paper(
        authors=("Li", "Li", "Wu", "Li", "He", "Lyu"),
        title="Invisible Backdoor Attack with Sample-Specific Triggers",
        venue="ICCV",
        year=2021,
        url="https://arxiv.org/abs/2012.03816",
    )
    colour_only: ClassVar[bool] = True
    bits: int = setting(100, "length of the bit string", least=1, most=10**6)
    strength: float = setting(16.0, "s, the largest change of a pixel, out of 255", above=0, most=255, own=True)
    distortion: float = setting(0.01, "lambda, weight of the residual's size", least=0, below=math.inf, own=True)
    steps: int = setting(400, "steps of training E and D", least=1, most=10**6, own=True)
    lr: float = setting(0.005, "largest learning rate of that training", least=0, below=math.inf, own=True)
    width: int = setting(16, "channels of the networks' first layers", least=1, most=10**6, own=True)

    def prepare(
        self,
        data: LabelledImages,
        *,
        seed: int,
        classifier: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Draw the string, and train encoder and decoder on the images."""
        del classifier
        self.check_data(data.spec)
        generator = torch.Generator().manual_seed(seed)
        string = torch.randint(0, 2, (self.bits,), generator=generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder, decoder = Encoder(self.bits, self.width), Decoder(self.bits, self.width)
        self._train(encoder, decoder, data.images, generator, progress)
        tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
        tensors |= {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
        return self.with_tensors(string=string, **tensors)

    def _train(
        self,
        encoder: Encoder,
        decoder: Decoder,
        images: Tensor,
        generator: torch.Generator,
        progress: Progress | None,
    ) -> None:
        optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=self.lr)
        for step in range(self.steps):
            done = step / self.steps
            optimiser.param_groups[0]["lr"] = self.lr * min(1, 20 * done + 0.05, (1 - done) / 0.3)
            weight = self.distortion * min(1, max(0, (done - _DISTORTION_FROM) / (_DISTORTION_TO - _DISTORTION_FROM)))
            x = images[torch.randint(len(images), (_BATCH,), generator=generator)].float()
            b = torch.randint(0, 2, (_BATCH, self.bits), generator=generator).float()
            noise = torch.rand(x.shape, generator=generator) - 0.5
            residual = encoder(x, b)
            seen = (x + self.strength * residual + noise).clamp(0, 255)
            loss = F.binary_cross_entropy_with_logits(decoder(seen), b)
            loss = loss + weight * residual.square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            if progress is not None:
                progress(step + 1, self.steps)

    @torch.no_grad()
    def stamp(self, images: Tensor) -> Tensor:
        """Hide the string in each image, and round to 8 bits."""
        if not len(images):
            return images.clone()
        string = self.tensor("string", images).float()
        encoder = self.network("encoder.", lambda: Encoder(self.bits, self.width), images)
        parts = []
        for part in torch.split(images, _STAMP_BATCH):
            x = part.float()
            hidden = x + self.strength * encoder(x, string.expand(len(x), -1))
            parts.append(self.to_8_bits(hidden))
        return torch.cat(parts)

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """Read the strings hidden in images: (N, 3, H, W) uint8 -> (N, bits) bool."""
        decoder = self.network("decoder.", lambda: Decoder(self.bits, self.width), images)
        return torch.cat([decoder(part.float()) > 0 for part in torch.split(images, _STAMP_BATCH)])


def _block(c_in: int, c_out: int, *, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class Encoder(nn.Module):
    """E: the string becomes an 8x8 map, is enlarged to the image's size, and joins the image's features."""

    side = 8

    def __init__(self, bits: int, width: int) -> None:
        super().__init__()
        self.spread = nn.Linear(bits, width * self.side**2)
        self.features = _block(3, width)
        self.body = _block(2 * width, 2 * width)
        self.last = nn.Conv2d(2 * width, 3, 3, padding=1)

    def forward(self, x: Tensor, b: Tensor) -> Tensor:
        """(N, 3, H, W) in 0..255 and (N, bits) of 0 and 1 -> (N, 3, H, W) in [-1, 1]."""
        message = self.spread(2 * b - 1).view(len(x), -1, self.side, self.side)
        message = F.interpolate(message, size=x.shape[-2:], mode="nearest")
        both = torch.cat([self.features(x / 127.5 - 1), message], dim=1)
        residual: Tensor = self.last(self.body(both)).tanh()
        return residual


class Decoder(nn.Module):
    """D: reads the string's logits from an image."""

    side = 8

    def __init__(self, bits: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(3, width),
            _block(width, 2 * width, stride=2),
            _block(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(self.side),
        )
        self.last = nn.Linear(2 * width * self.side**2, bits)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in 0..255 -> (N, bits) logits."""
        logits: Tensor = self.last(self.body(x / 127.5 - 1).flatten(1))
        return logits


ATTACKS.add(SSBA.name, SSBA)
