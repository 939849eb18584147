"""ResNet-18, -34 and -50 for 32x32 and 64x64 images (He et al., CVPR 2016, the CIFAR variant), also with GroupNorm.

A 3x3 stem of stride 1, no max-pooling, four stages of `width`, 2, 4 and 8 times `width` channels. Parameter
names are torchvision's. With width 64 and 10 classes ResNet-18 has 11,173,962 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 8 groups, or of one channel each where there are fewer (Wu & He, ECCV 2018)."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


class BasicBlock(nn.Module):
    """relu(bn(conv3x3(relu(bn(conv3x3(x))))) + skip(x))."""

    expansion = 1

    def __init__(self, c_in: int, c_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = norm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = norm(c_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), norm(c_out))

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + skip)


class Bottleneck(nn.Module):
    """relu(bn(conv1x1(relu(bn(conv3x3(relu(bn(conv1x1(x)))))))) + skip(x)), four times as wide outside as inside."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        c_out = width * self.expansion
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3 = norm(c_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), norm(c_out))

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        return torch.relu(self.bn3(self.conv3(out)) + skip)


Block = type[BasicBlock] | type[Bottleneck]


def _stage(block: Block, c_in: int, width: int, count: int, stride: int, norm: Norm) -> nn.Sequential:
    """`count` blocks, of which the first changes the resolution and the number of channels."""
    c_out = width * block.expansion
    return nn.Sequential(block(c_in, width, stride, norm), *(block(c_out, width, 1, norm) for _ in range(count - 1)))


class ResNet(nn.Module):
    """Stem, four stages of blocks, global average pooling, one Linear.

    Args:
        block: BasicBlock or Bottleneck.
        blocks: blocks per stage.
        num_classes: outputs of the classifier.
        width: channels of the stem and of the first stage (64 in the paper).
        stride: of the stem.
        norm: makes the norm behind each convolution.
    """

    def __init__(
        self,
        block: Block,
        blocks: tuple[int, int, int, int],
        *,
        num_classes: int = 10,
        width: int = 64,
        stride: int = 1,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        wide = block.expansion
        self.conv1 = nn.Conv2d(3, width, 3, stride, 1, bias=False)
        self.bn1 = norm(width)
        self.layer1 = _stage(block, width, width, blocks[0], 1, norm)
        self.layer2 = _stage(block, wide * width, 2 * width, blocks[1], 2, norm)
        self.layer3 = _stage(block, wide * 2 * width, 4 * width, blocks[2], 2, norm)
        self.layer4 = _stage(block, wide * 4 * width, 8 * width, blocks[3], 2, norm)
        self.fc = nn.Linear(wide * 8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images -> (N, num_classes) logits."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return cast(Tensor, self.fc(x.mean((2, 3))))


def resnet18(*, num_classes: int = 10, width: int = 64, stride: int = 1) -> ResNet:
    """ResNet-18, CIFAR stem."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes=num_classes, width=width, stride=stride)


def resnet34(*, num_classes: int = 10, width: int = 64, stride: int = 1) -> ResNet:
    """ResNet-34, CIFAR stem."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes=num_classes, width=width, stride=stride)


def resnet50(*, num_classes: int = 10, width: int = 64, stride: int = 1) -> ResNet:
    """ResNet-50, CIFAR stem."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes=num_classes, width=width, stride=stride)


def resnet18_gn(*, num_classes: int = 10, width: int = 64, stride: int = 1) -> ResNet:
    """ResNet-18 with GroupNorm instead of BatchNorm, CIFAR stem."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes=num_classes, width=width, stride=stride, norm=group_norm)
