"""VGG16 and VGG19, with and without BatchNorm, with ReLU or ELU, for small images (Simonyan & Zisserman, ICLR 2015).

The convolutions are the paper's (with biases, as in torchvision: immaterial in front of a norm); the head is one
Linear behind global average pooling, since torchvision's 7x7 head only repeats one pixel 49 times at 32x32.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

_CONVS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Five groups of 3x3 convolutions, max-pooling behind each, global average pooling, one Linear.

    Args:
        depth: 16 or 19.
        batch_norm: a BatchNorm behind every convolution.
        num_classes: outputs of the classifier.
        width: channels of the first group (64 in the paper); the groups have 1, 2, 4, 8 and 8 times as many.
        activation: behind every convolution.
    """

    def __init__(
        self,
        depth: int,
        *,
        batch_norm: bool,
        num_classes: int = 10,
        width: int = 64,
        activation: type[nn.ReLU | nn.ELU] = nn.ReLU,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 3
        for count, factor in zip(_CONVS[depth], (1, 2, 4, 8, 8), strict=True):
            for _ in range(count):
                layers.append(nn.Conv2d(c_in, width * factor, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width * factor))
                layers.append(activation(inplace=True))
                c_in = width * factor
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(c_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images, H and W at least 32 -> (N, num_classes) logits."""
        return cast(Tensor, self.classifier(self.features(x).mean((2, 3))))


def vgg16_bn(*, num_classes: int = 10, width: int = 64) -> VGG:
    """VGG16 with BatchNorm."""
    return VGG(16, batch_norm=True, num_classes=num_classes, width=width)


def vgg16_bn_elu(*, num_classes: int = 10, width: int = 64) -> VGG:
    """VGG16 with BatchNorm and ELU (Clevert et al., ICLR 2016)."""
    return VGG(16, batch_norm=True, num_classes=num_classes, width=width, activation=nn.ELU)


def vgg19_bn(*, num_classes: int = 10, width: int = 64) -> VGG:
    """VGG19 with BatchNorm: what the paper's VGG19 table must have used, since CLP and BNP change its results."""
    return VGG(19, batch_norm=True, num_classes=num_classes, width=width)


def vgg19(*, num_classes: int = 10, width: int = 64) -> VGG:
    """VGG19 without norms."""
    return VGG(19, batch_norm=False, num_classes=num_classes, width=width)
