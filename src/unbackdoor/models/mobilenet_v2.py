"""MobileNetV2 for 32x32 and 64x64 images (Sandler et al., CVPR 2018).

The paper's table of blocks; the stem and the second stage keep their resolution, as is usual for small images.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

#: (expansion, channels, blocks, stride of the first) of each stage (Table 2), strides for small images.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel by itself, narrow without activation; skip where shapes fit."""

    def __init__(self, c_in: int, c_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        widen = [_conv(c_in, hidden, 1)] if expansion != 1 else []
        narrow = [nn.Conv2d(hidden, c_out, 1, bias=False), nn.BatchNorm2d(c_out)]
        self.conv = nn.Sequential(*widen, _conv(hidden, hidden, 3, stride, groups=hidden), *narrow)
        self.skips = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        out = cast(Tensor, self.conv(x))
        return x + out if self.skips else out


class MobileNetV2(nn.Module):
    """Stem, seven stages, a last 1x1 convolution, global average pooling, one Linear.

    Args:
        num_classes: outputs of the classifier.
        width: channels of the stem (32 in the paper); all others follow in proportion.
        stride: of the stem (2 in the paper).
    """

    def __init__(self, *, num_classes: int = 10, width: int = 32, stride: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, width, 3, stride)]
        c_in = width
        for expansion, channels, blocks, step in _STAGES:
            c_out = max(1, channels * width // 32)
            for index in range(blocks):
                layers.append(InvertedResidual(c_in, c_out, expansion, step if index == 0 else 1))
                c_in = c_out
        last = max(1, 1280 * width // 32)
        self.features = nn.Sequential(*layers, _conv(c_in, last, 1))
        self.classifier = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images -> (N, num_classes) logits."""
        return cast(Tensor, self.classifier(self.features(x).mean((2, 3))))


def mobilenetv2(*, num_classes: int = 10, width: int = 32, stride: int = 1) -> MobileNetV2:
    """MobileNetV2, small images."""
    return MobileNetV2(num_classes=num_classes, width=width, stride=stride)
