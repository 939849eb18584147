"""Directions at the classifier's input, and the images of a class that do not lie along them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.defender import directions
from unbackdoor.defender.directions import across, classifier_inputs, direction, genuine
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.photographs import photographs
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


def test_images_of_the_class_that_lie_least_along_the_ways() -> None:
    shown, ways, seed = network(), [Reddened()], torch.Generator().manual_seed(4)
    others = photographs(300, shown.spec, seed)
    others = others[shown.logits(others).argmax(1) != 0]
    given: Any = ways
    found = genuine(shown, "fc", 0, given, others, torch.Generator().manual_seed(5))
    crops = photographs(directions.CROPS, shown.spec, torch.Generator().manual_seed(5))
    crops = crops[shown.logits(crops).argmax(1) == 0]
    assert len(found) == -(-len(crops) // 4)
    assert bool((shown.logits(found).argmax(1) == 0).all())
    # d is red alone, so u is the red that the other colours do not foretell.
    h = others.mean((2, 3)).double()
    u = across(h, h[:0], torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    assert float(u[0]) == pytest.approx(1)
    along = [((images.mean((2, 3)).double() - h.mean(0)) @ u) for images in (found, crops)]
    assert float(along[0].max()) <= float(along[1].quantile(0.26))


def test_a_class_that_no_photograph_shows_has_none() -> None:
    shown, ways, seed = network(), [Reddened()], torch.Generator().manual_seed(4)
    with torch.no_grad():
        shown.model.get_submodule("fc").bias.copy_(torch.tensor([-9.0, 0.0, 0.0]))
    given: Any = ways
    assert len(genuine(shown, "fc", 0, given, photographs(50, shown.spec, seed), seed)) == 0
