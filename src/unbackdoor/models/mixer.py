"""A small MLP-Mixer for 32x32 and 64x64 images (Tolstikhin et al., NeurIPS 2021)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class MixerBlock(nn.Module):
    """x + mlp over patches, then x + mlp over channels, each behind a norm."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.across = _mlp(tokens, max(1, width // 2))
        self.norm2 = nn.LayerNorm(width)
        self.within = _mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) -> the same shape."""
        x = x + cast(Tensor, self.across(self.norm1(x).transpose(1, 2))).transpose(1, 2)
        return x + cast(Tensor, self.within(self.norm2(x)))


class Mixer(nn.Module):
    """Patches, blocks, a norm, the mean over patches, one Linear.

    Args:
        num_classes: outputs of the classifier.
        width: channels of a patch.
        depth: blocks.
        size: height and width of the images.
        patch: side of a patch; divides `size`.
    """

    def __init__(self, *, num_classes: int, width: int, depth: int, size: int, patch: int) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"patch {patch} must divide size {size}")
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*(MixerBlock((size // patch) ** 2, width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, size, size) normalised images -> (N, num_classes) logits."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        return cast(Tensor, self.head(self.norm(self.blocks(x)).mean(1)))


def mixer_small(*, num_classes: int = 10, width: int = 128, depth: int = 4, size: int = 32, patch: int = 4) -> Mixer:
    """MLP-Mixer of 4 blocks, 128 wide, patches of 4x4."""
    return Mixer(num_classes=num_classes, width=width, depth=depth, size=size, patch=patch)
