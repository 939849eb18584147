"""The maximum margin statistic: its law by hand and against scipy's, and a network with a planted margin."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from unbackdoor.defender.case import Case
from unbackdoor.detectors.data_free.maximum_margin import MaximumMargin, chance_of_largest, gamma_fit
from unbackdoor.errors import MethodError, SettingError
from unbackdoor.inputs import Normalisation

PLAIN = Normalisation(mean=(0.0,), std=(1.0,))
EXAMPLE = torch.zeros(2, 1, 6, 6)


@pytest.mark.parametrize("shape", [0.3, 1.0, 7.0, 300.0])
@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_the_law_is_scipys(shape: float, scale: float) -> None:
    values = np.random.default_rng(1).gamma(shape, scale, 20)
    wanted = stats.gamma.fit(values, floc=0)
    assert gamma_fit(list(values)) == pytest.approx((wanted[0], wanted[2]), rel=1e-6)
    largest = float(values.max() * 1.5)
    chance = 1 - stats.gamma.cdf(largest, wanted[0], scale=wanted[2]) ** 21
    assert chance_of_largest([*values, largest]) == pytest.approx(chance, rel=1e-5, abs=1e-12)


def test_the_law_of_an_exponential_by_hand() -> None:
    """The shape is 1 where log mean - mean log is Euler's constant, and 1 - H(x) is then exp(-x / mean)."""
    gap = 0.5772156649015329
    low, high = 1 - math.sqrt(1 - math.exp(-2 * gap)), 1 + math.sqrt(1 - math.exp(-2 * gap))
    assert gamma_fit([low, high]) == pytest.approx((1, 1))
    assert chance_of_largest([low, high, 3.0]) == pytest.approx(1 - (1 - math.exp(-3)) ** 3)


def test_numbers_that_are_all_equal() -> None:
    assert chance_of_largest([2.0] * 10) > 0.9
    assert chance_of_largest([2.0] * 9 + [2.1]) < 1e-6


class Toy(nn.Module):
    """Eight classes of 6 x 6 grey images; each likes four pixels of its own, and class 5 may like four more."""

    def __init__(self, *, planted: float = 0.0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(1, 36, 6)
        self.fc = nn.Linear(36, 8)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(36).view(36, 1, 6, 6))
            self.conv.bias.zero_()
            self.fc.weight.copy_(torch.randn(8, 36, generator=draw) / 4)
            self.fc.weight[torch.arange(32) // 4, torch.arange(32)] += 3
            self.fc.weight[5, 32:] += planted
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x).flatten(1)))


def looked(model: nn.Module, seed: int = 0, **more: object):
    settings = MaximumMargin(starts=3, steps=30, lr=0.05, **more)
    return settings(model, example=EXAMPLE, normalisation=PLAIN, generator=torch.Generator().manual_seed(seed))


def test_a_planted_margin_is_found() -> None:
    assert looked(Toy()).suspicious == ()
    model = Toy(planted=6.0)
    found = looked(model)
    assert found.suspicious == (5,)
    assert found.classes[5].values["p"] < 0.05
    assert found.classes[4].values["p"] is None
    assert (found.images, found.digest) == (0, None)
    assert found.to_json() == looked(model).to_json()
    assert found.classes != looked(model, seed=1).classes
    assert looked(model, alpha=0.0).suspicious == ()


def test_the_margin_of_a_linear_network_by_hand() -> None:
    """Two pixels and four classes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 4))
    with torch.no_grad():
        model[1].weight.copy_(4 * torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]))
        model[1].bias.copy_(torch.tensor([1.0, 1, 4, 4]))
    found = MaximumMargin(starts=20, steps=200)(
        model, example=torch.zeros(2, 1, 1, 2), normalisation=PLAIN, generator=torch.Generator().manual_seed(0)
    )
    # With pixels x and y the logits are 4x + 1, 4y + 1, 4 - 4x, 4 - 4y. The second and fourth meet at y = 3/8, where
    # both are 2.5: the first is then ahead by 2.5 at x = 1, the third by 1.5 at x = 0.
    assert [one.values["margin"] for one in found.classes] == pytest.approx([2.5, 2.5, 1.5, 1.5], abs=0.05)


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    MaximumMargin(starts=3, steps=20)(
        Toy(),
        example=EXAMPLE,
        generator=torch.Generator(),
        progress=lambda done, total, _note: told.append((done, total)),
    )
    assert told == [(i + 1, 160) for i in range(160)]


def test_what_it_cannot_look_at() -> None:
    with pytest.raises(MethodError, match="expected a network of 2 or more classes, got 1"):
        looked(nn.Sequential(nn.Flatten(), nn.Linear(36, 1)))
    with pytest.raises(MethodError, match="fails on images of 1x6x6"):
        looked(nn.Sequential(nn.Flatten(), nn.Linear(35, 4)))
    with pytest.raises(MethodError, match=r"expected a network that returns logits of shape \(N, classes\)"):
        looked(nn.Conv2d(1, 4, 3))
    broken = Toy()
    with torch.no_grad():
        broken.fc.bias[2] = math.inf
    with pytest.raises(MethodError, match="expected finite logits"):
        looked(broken)
    one_sided = Toy()
    with torch.no_grad():
        one_sided.fc.bias[3] = 1000
    with pytest.raises(MethodError, match="expected 4 or more classes that some image is answered with, found 1 of 8"):
        looked(one_sided)


def test_what_it_must_be_told() -> None:
    with pytest.raises(MethodError, match="--input 3x32x32"):
        MaximumMargin()(Toy(), generator=torch.Generator())
    with pytest.raises(SettingError, match="tensors without a network"):
        MaximumMargin().run(Case(network=Toy().state_dict(), generator=torch.Generator()))
