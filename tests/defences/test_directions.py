"""Directions at the classifier's input."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.defences.data_free.directions import RIDGES, across, along, best_ridge, classifier_inputs, direction
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.inputs import InputSpec


class MeanColour(nn.Module):
    """Answers the colour of which an image has most."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.fc = scale, nn.Linear(3, 3)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(3))
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.scale * x.mean((2, 3)))


class Reddened:
    """A way into class 0: red is added."""

    def logits(self, shown: OnPixels, plain: Tensor, pixels: Tensor, strength: Tensor | None = None) -> Tensor:
        return shown(torch.cat([plain, pixels + torch.tensor([0.5, 0.0, 0.0])[:, None, None]]))


def network(scale: float = 1.0) -> OnPixels:
    return OnPixels(MeanColour(scale).eval(), InputSpec(shape=(3, 6, 6), mean=(0.0,) * 3, std=(1.0,) * 3), exact=True)


def test_what_a_way_changes_at_the_classifier() -> None:
    shown, pixels, way = network(), torch.rand(7, 3, 6, 6), Reddened()
    ways: Any = [way, way]
    d = direction(shown, "fc", ways, pixels, classifier_inputs(shown, "fc", pixels))
    assert torch.allclose(d, torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64))  # two of length 1


def test_how_far_images_are_on_the_ways() -> None:
    """The way adds a half of red, and no other colour tells of it, so c counts halves of red.

    It makes no difference in which units the classifier's input is, nor how often the same way was found.
    """
    seed = torch.Generator().manual_seed(4)
    others = torch.rand(200, 3, 1, 1, generator=seed).expand(-1, -1, 6, 6)
    images = others[:20] + torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    for scale, count in ((1.0, 1), (10.0, 1), (0.1, 3)):
        shown, ways = network(scale), cast(Any, [Reddened()] * count)
        before, after = (along(shown, "fc", ways, others, some) for some in (others[:20], images))
        assert torch.allclose(after - before, torch.full((20,), 2.0, dtype=torch.float64), atol=1e-4)
        assert float(along(shown, "fc", ways, others, others).mean()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("features", "images", "least"), [(8, 400, 0.0), (400, 100, 0.05)])
def test_the_ridge_is_chosen_on_images_that_are_left_out(features: int, images: int, least: float) -> None:
    """New images vary along u as little as with any other, give or take a fifth. Few images of many features would be
    fitted too closely by a small one."""
    numbers = torch.Generator().manual_seed(0)
    scale = torch.linspace(1, 3, features, dtype=torch.float64)
    h, new = (torch.randn(count, features, generator=numbers, dtype=torch.float64) * scale for count in (images, 2000))
    d = torch.randn(features, generator=numbers, dtype=torch.float64)
    none = h[:0]

    def varies(ridge: float | None) -> float:
        return float((new @ across(h, none, d, ridge)).square().mean())

    assert best_ridge(h, none, d) > least
    assert varies(None) <= 1.2 * min(varies(ridge) for ridge in RIDGES)
    assert varies(None) == varies(best_ridge(h, none, d))


def test_too_few_images_choose_no_ridge() -> None:
    h = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert best_ridge(h, h[:0], torch.ones(3, dtype=torch.float64)) == RIDGES[0]
