"""WideResNet-16 for small images (Zagoruyko & Komodakis, BMVC 2016): three stages of pre-activation blocks."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from unbackdoor.models.preact_resnet import stage


class WideResNet(nn.Module):
    """Stem convolution, three stages of pre-activation blocks, a norm, global average pooling, one Linear.

    Args:
        count: blocks per stage; the depth is 6 count + 4.
        num_classes: outputs of the classifier.
        width: channels of the first stage, 16 k in the paper's notation; the stem has 16 at most.
        stride: of the stem.
    """

    def __init__(self, count: int, *, num_classes: int = 10, width: int = 64, stride: int = 1) -> None:
        super().__init__()
        stem = min(16, width)
        self.conv1 = nn.Conv2d(3, stem, 3, stride, 1, bias=False)
        self.layer1 = stage(stem, width, count, 1)
        self.layer2 = stage(width, 2 * width, count, 2)
        self.layer3 = stage(2 * width, 4 * width, count, 2)
        self.bn = nn.BatchNorm2d(4 * width)
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images -> (N, num_classes) logits."""
        x = torch.relu(self.bn(self.layer3(self.layer2(self.layer1(self.conv1(x))))))
        return cast(Tensor, self.linear(x.mean((2, 3))))


def wideresnet16(*, num_classes: int = 10, width: int = 64, stride: int = 1) -> WideResNet:
    """WideResNet-16; of width 64 it is WRN-16-4."""
    return WideResNet(2, num_classes=num_classes, width=width, stride=stride)
