"""A small vision transformer for 32x32 and 64x64 images (Dosovitskiy et al., ICLR 2021), blocks with the norm first."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with packed query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) -> the same shape."""
        packed = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(packed[0], packed[1], packed[2])
        return cast(Tensor, self.proj(out.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + cast(Tensor, self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """Patches, a learned position each, blocks, a norm, the mean over patches, one Linear.

    Args:
        num_classes: outputs of the classifier.
        width: of the tokens.
        depth: blocks.
        heads: of each attention.
        size: height and width of the images.
        patch: side of a patch; divides `size`.
    """

    def __init__(self, *, num_classes: int, width: int, depth: int, heads: int, size: int, patch: int) -> None:
        super().__init__()
        if size % patch or width % heads:
            raise ValueError(f"patch {patch} must divide size {size}, and heads {heads} width {width}")
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Parameter(torch.zeros(1, (size // patch) ** 2, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, size, size) normalised images -> (N, num_classes) logits."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return cast(Tensor, self.head(self.norm(self.blocks(x)).mean(1)))


def vit_small(
    *, num_classes: int = 10, width: int = 192, depth: int = 6, heads: int = 3, size: int = 32, patch: int = 4
) -> ViT:
    """ViT of 6 blocks, 192 wide, patches of 4x4."""
    return ViT(num_classes=num_classes, width=width, depth=depth, heads=heads, size=size, patch=patch)
