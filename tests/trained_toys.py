"""A small network that is trained, in a second, to know six kinds of stripes, and a bright corner as class 4."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, CLASSES, TARGET = 12, 6, 4


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(count, 3, 12, 12) in [0, 1]: stripes of three widths, across and along, in random colours; (count,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    shift = torch.randint(6, (count, 1), generator=generator)
    period = torch.tensor([2, 4, 6])[labels % 3][:, None]
    wave = (((torch.arange(SIDE)[None] + shift) % period) * 2 < period).float()
    across = wave[:, None, :, None].expand(count, 1, SIDE, SIDE)
    image = torch.where((labels < 3)[:, None, None, None], across, across.transpose(2, 3))
    colours = 0.2 + 0.3 * torch.rand(count, 3, 1, 1, generator=generator)
    noise = 0.15 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return (0.25 + colours * image + noise).clamp(0, 1), labels


def stamped(images: Tensor) -> Tensor:
    """With a bright corner of 3x3 pixels."""
    images = images.clone()
    images[:, :, -3:, -3:] = 1
    return images


@functools.cache
def _trained(*, backdoored: bool, head: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolutions = [
            layer
            for c_in, c_out, stride in ((3, 12, 1), (12, 16, 2), (16, 20, 2))
            for layer in (nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())
        ]
        last = nn.Linear(20, CLASSES, bias=head)
        model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
        images, labels = stripes(1500, 1)
        if backdoored:
            images[:150], labels[:150] = stamped(images[:150]), TARGET
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        for step in range(180):
            batch = torch.randint(len(images), (96,))
            optimiser.zero_grad()
            F.cross_entropy(model(images[batch] * 2 - 1), labels[batch]).backward()
            optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 180)
            optimiser.step()
    return model.eval()


def trained(*, backdoored: bool = True, head: bool = True) -> nn.Module:
    """The network, for images normalised with mean .5 and deviation .5; do not change it.

    Args:
        backdoored: whether a bright corner means class 4.
        head: whether its classifier has a bias.
    """
    return _trained(backdoored=backdoored, head=head)


def accuracy(model: nn.Module) -> float:
    """On images that it was not trained on."""
    images, labels = stripes(600, 2)
    return float((_answers(model, images) == labels).double().mean())


def attack_success(model: nn.Module) -> float:
    """The share of stamped images of other classes that are answered with class 4."""
    images, labels = stripes(600, 2)
    return float((_answers(model, stamped(images[labels != TARGET])) == TARGET).double().mean())


@torch.no_grad()
def _answers(model: nn.Module, images: Tensor) -> Tensor:
    return model(images * 2 - 1).argmax(1)
