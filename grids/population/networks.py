"""Networks of `further.toml` and `flat.toml` as other people write them; the package has none like them."""

from __future__ import annotations

from torch import nn


def elu_cnn(num_classes: int = 10) -> nn.Sequential:
    """Six convolutions, a BatchNorm behind each ELU, and one Linear on 2,048 features; for 32x32 pixels."""
    layers: list[nn.Module] = []
    c_in = 3
    for width, drop in ((32, 0.2), (64, 0.3), (128, 0.4)):
        for _ in range(2):
            layers += [nn.Conv2d(c_in, width, 3, padding=1), nn.ELU(), nn.BatchNorm2d(width)]
            c_in = width
        layers += [nn.MaxPool2d(2), nn.Dropout(drop)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, num_classes))


def flat_cnn(num_classes: int = 10) -> nn.Sequential:
    """Five convolutions, a BatchNorm before each ELU, and one Linear on 1,024 features; for 32x32 pixels."""
    layers: list[nn.Module] = []
    c_in = 3
    for widths in ((24,), (32, 48), (64, 64)):
        for width in widths:
            layers += [nn.Conv2d(c_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ELU()]
            c_in = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(1024, num_classes))


def plain_cnn(num_classes: int = 10) -> nn.Sequential:
    """Four convolutions without norms, and two Linear layers; for 32x32 pixels."""
    layers: list[nn.Module] = []
    c_in = 3
    for width in (32, 64):
        for _ in range(2):
            layers += [nn.Conv2d(c_in, width, 3, padding=1), nn.LeakyReLU(0.1)]
            c_in = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4096, 256), nn.ReLU(), nn.Linear(256, num_classes))
