"""Directions at the classifier's input."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.defender.directions import along, classifier_inputs, direction
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.inputs import InputSpec


class MeanColour(nn.Module):
    """Answers the colour of which an image has most."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(3))
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Reddened:
    """A way into class 0: red is added."""

    def logits(self, shown: OnPixels, plain: Tensor, pixels: Tensor, strength: Tensor | None = None) -> Tensor:
        return shown(torch.cat([plain, pixels + torch.tensor([0.5, 0.0, 0.0])[:, None, None]]))


def network() -> OnPixels:
    return OnPixels(MeanColour().eval(), InputSpec(shape=(3, 6, 6), mean=(0.0,) * 3, std=(1.0,) * 3), exact=True)


def test_what_a_way_changes_at_the_classifier() -> None:
    shown, pixels, way = network(), torch.rand(7, 3, 6, 6), Reddened()
    ways: Any = [way, way]
    d = direction(shown, "fc", ways, pixels, classifier_inputs(shown, "fc", pixels))
    assert torch.allclose(d, torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64))  # two of length 1


def test_how_far_images_are_on_the_ways() -> None:
    """The way adds red, and no other colour tells of it, so c counts red: 1 for a half more."""
    shown, seed = network(), torch.Generator().manual_seed(4)
    others = torch.rand(200, 3, 1, 1, generator=seed).expand(-1, -1, 6, 6)
    ways: Any = [Reddened()]
    images = others[:20] + torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    before, after = (along(shown, "fc", ways, others, some) for some in (others[:20], images))
    assert torch.allclose(after - before, torch.ones(20, dtype=torch.float64), atol=1e-4)
    assert float(along(shown, "fc", ways, others, others).mean()) == pytest.approx(0, abs=1e-6)
