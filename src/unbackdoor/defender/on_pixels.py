"""A network that answers pixels, as what works with surrogate images runs it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor.inputs import InputSpec
from unbackdoor.precision import autocast_dtype

#: Images in a forward pass without gradients.
CHUNK = 256


@dataclass(frozen=True)
class OnPixels:
    """Pixels in [0, 1] -> float32 logits.

    A float32 network runs in bfloat16 where the hardware is faster at it (`precision`); gradients go through.

    Attributes:
        model: in eval mode, on any device and in any precision.
        spec: the images that it takes.
    """

    model: nn.Module
    spec: InputSpec

    @property
    def _weight(self) -> Tensor:
        return next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))

    @property
    def device(self) -> torch.device:
        """Of the network."""
        return self._weight.device

    def inputs(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> what the network takes, in the layout in which convolutions are fastest."""
        x = self.spec.normalise(pixels.to(self.device)).to(self._weight.dtype)
        return x.contiguous(memory_format=torch.channels_last)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> (N, classes)."""
        fast = autocast_dtype(self.device) if self._weight.dtype == torch.float32 else None
        with torch.autocast(self.device.type, fast, enabled=fast is not None):
            logits: Tensor = self.model(self.inputs(pixels))
        return logits.float()

    def logits(self, pixels: Tensor) -> Tensor:
        """(N, classes), in chunks, without gradients, on the CPU."""
        with torch.no_grad():
            return torch.cat([self(part).cpu() for part in torch.split(pixels, CHUNK)])
