"""PreActResNet-18 for small images (He et al., Identity Mappings in Deep Residual Networks, ECCV 2016).

Parameter names are those of the checkpoints that circulate in the field (`shortcut.0`, `linear`); there is no
norm behind the last block. With width 64 and 10 classes: 16 norms, 20 convolutions, 11,171,146 parameters.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """conv(relu(bn(conv(relu(bn(x)))))) + skip; the projection shortcut reads relu(bn1(x))."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        pre = torch.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(pre)
        out: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(pre))))
        return out + skip


def stage(c_in: int, c_out: int, count: int, stride: int) -> nn.Sequential:
    """`count` blocks, of which the first changes the resolution and the number of channels."""
    first = PreActBlock(c_in, c_out, stride)
    return nn.Sequential(first, *(PreActBlock(c_out, c_out, 1) for _ in range(count - 1)))


class PreActResNet(nn.Module):
    """Stem convolution, four stages of pre-activation blocks, global average pooling, one Linear.

    Args:
        blocks: per stage.
        num_classes: outputs of the classifier.
        width: channels of the stem and the first stage.
        stride: of the stem.
    """

    def __init__(
        self, blocks: tuple[int, int, int, int], *, num_classes: int = 10, width: int = 64, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride, 1, bias=False)
        self.layer1 = stage(width, width, blocks[0], 1)
        self.layer2 = stage(width, 2 * width, blocks[1], 2)
        self.layer3 = stage(2 * width, 4 * width, blocks[2], 2)
        self.layer4 = stage(4 * width, 8 * width, blocks[3], 2)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images -> (N, num_classes) logits."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return cast(Tensor, self.linear(x.mean((2, 3))))


def preactresnet18(*, num_classes: int = 10, width: int = 64, stride: int = 1) -> PreActResNet:
    """PreActResNet-18, CIFAR stem."""
    return PreActResNet((2, 2, 2, 2), num_classes=num_classes, width=width, stride=stride)
