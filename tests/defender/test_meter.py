"""The damage meter: its features by hand, and what must hold for any coefficients."""

import copy
import math

import pytest
import torch
from torch import nn

from unbackdoor.defender import meter
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.errors import MethodError
from unbackdoor.inputs import InputSpec

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
SCALE = meter.Coefficients(weights={"changed leaves": 10.0, "kl pairs": 20.0}, factor=2.0, rest=0.5, made_on="")


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    with torch.no_grad():
        model[-1].weight.mul_(20)
    return model.eval().requires_grad_(False)


def on(model: nn.Module) -> OnPixels:
    return OnPixels(model, SPEC, exact=True)


@pytest.fixture(scope="module")
def shown() -> meter.Shown:
    return meter.meter_images(on(network()), torch.Generator().manual_seed(0), count=12)


def test_divergences_by_hand() -> None:
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0]]).log()
    q = torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.0, 1.0]]).log()
    expected = [0.0, 1.0, 1.0]  # the second is .8 log 9 = 1.76, and counts as the most
    assert meter.divergences(p, q).tolist() == pytest.approx(expected)
    small = torch.tensor([[0.6, 0.4]]).log()
    by_hand = 0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4)
    assert float(meter.divergences(p[:1], small)) == pytest.approx(by_hand)


def test_no_edit_costs_nothing(shown: meter.Shown) -> None:
    damage = meter.predict(shown, on(network()), SCALE)
    assert (damage.loss, damage.low, damage.high) == (0.0, 0.0, 0.5)
    assert set(damage.changed) == {"leaves", "spectra", "impressions", "pairs", "mixed"}
    assert set(damage.changed.values()) == {0.0}
    assert all(not share for share in damage.recall)


def test_loss_and_interval_by_hand(shown: meter.Shown) -> None:
    edited = network()
    with torch.no_grad():
        edited[0].weight[:3] = 0
    damage = meter.predict(shown, on(edited), SCALE)
    seen = meter.features(shown, on(edited))
    assert damage.loss == pytest.approx(10 * seen["changed leaves"] + 20 * seen["kl pairs"])
    assert damage.loss > 0
    assert damage.high == pytest.approx(2 * damage.loss + 0.5)
    assert damage.low == pytest.approx(max(0, damage.loss / 2 - 0.5))


def test_a_class_that_is_never_answered_again(shown: meter.Shown) -> None:
    edited = copy.deepcopy(network())
    with torch.no_grad():
        edited[-1].bias[2] = -1e4
    answered = shown.before["impressions"].argmax(1)
    assert 2 in answered.tolist()
    assert meter.predict(shown, on(edited), SCALE).recall[2] == 1.0


def test_a_broken_network_is_refused(shown: meter.Shown) -> None:
    edited = copy.deepcopy(network())
    with torch.no_grad():
        edited[0].weight[0] = math.nan
    with pytest.raises(MethodError, match="finite"):
        meter.predict(shown, on(edited), SCALE)


def test_pairs_are_of_two_images(shown: meter.Shown) -> None:
    impressions, pairs = shown.images["impressions"], shown.images["pairs"]
    assert all(float((pair - own).abs().max()) > 1e-3 for pair, own in zip(pairs, impressions, strict=True))


def test_what_ships() -> None:
    scale = meter.coefficients()
    kinds = ("leaves", "spectra", "impressions", "pairs", "mixed")
    assert set(scale.weights) <= {f"{what} {kind}" for what in ("changed", "kl") for kind in kinds}
    assert all(weight > 0 for weight in scale.weights.values())  # so that a larger change never costs less
    assert scale.factor >= 1
    assert scale.rest >= 0
