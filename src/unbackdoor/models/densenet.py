"""DenseNet-121 for 32x32 and 64x64 images (Huang et al., CVPR 2017): bottlenecks, compression one half, a 3x3 stem."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """Appends conv3x3(relu(bn(conv1x1(relu(bn(x)))))) to its input: `growth` new channels."""

    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(new)))], dim=1)


def _transition(c_in: int, c_out: int) -> nn.Sequential:
    """Halve channels and resolution."""
    return nn.Sequential(
        nn.BatchNorm2d(c_in), nn.ReLU(inplace=True), nn.Conv2d(c_in, c_out, 1, bias=False), nn.AvgPool2d(2)
    )


class DenseNet(nn.Module):
    """Stem, four dense blocks with transitions between, a norm, global average pooling, one Linear.

    Args:
        blocks: layers of each dense block.
        num_classes: outputs of the classifier.
        growth: channels that each layer adds (32 in the paper).
        stride: of the stem.
    """

    def __init__(self, blocks: tuple[int, ...], *, num_classes: int = 10, growth: int = 32, stride: int = 1) -> None:
        super().__init__()
        channels = 2 * growth
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, stride, 1, bias=False)]
        for index, count in enumerate(blocks):
            for _ in range(count):
                layers.append(DenseLayer(channels, growth))
                channels += growth
            if index < len(blocks) - 1:
                layers.append(_transition(channels, channels // 2))
                channels //= 2
        self.features = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images -> (N, num_classes) logits."""
        x = torch.relu(self.norm(self.features(x)))
        return cast(Tensor, self.classifier(x.mean((2, 3))))


def densenet121(*, num_classes: int = 10, growth: int = 32, stride: int = 1) -> DenseNet:
    """DenseNet-121, small images."""
    return DenseNet((6, 12, 24, 16), num_classes=num_classes, growth=growth, stride=stride)
