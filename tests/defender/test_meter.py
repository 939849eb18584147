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
SCALE = meter.Coefficients(
    weights={"moved leaves": 1.0, "moved pairs": 2.0}, below=2.0, above=4.0, rest=0.5, made_on=""
)


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


def test_movement_by_hand() -> None:
    """Class 3 moved most and is left out; the others moved by (1, -1, 0) and back, and a common movement is no loss."""
    before = {"impressions": torch.tensor([[3.0, 0.0, -3.0, 0.0], [0.0, 3.0, 0.0, -3.0]])}
    move = torch.tensor([[1.0, -1.0, 0.0, -9.0], [-1.0, 1.0, 0.0, 9.0]])
    now = {"impressions": before["impressions"] + move}
    assert meter.class_apart(before, now) == 3
    unit = 18 / 4  # the variance over the four classes, of either image
    assert meter.moved(before, now) == {"moved impressions": pytest.approx(2 / 3 / unit)}
    shifted = {"impressions": now["impressions"] + torch.tensor([2.0, -1.0, 0.5, 3.0])}
    assert meter.moved(before, shifted) == {"moved impressions": pytest.approx(2 / 3 / unit)}


def test_of_two_classes_none_is_left_out() -> None:
    before = {"impressions": torch.tensor([[2.0, -2.0], [2.0, -2.0]])}
    now = {"impressions": torch.tensor([[1.0, -1.0], [3.0, -3.0]])}
    assert meter.class_apart(before, now) is None
    assert meter.moved(before, now) == {"moved impressions": pytest.approx(1 / 4)}


@pytest.mark.parametrize("factor", [0.001, 1000.0])
def test_the_scale_of_logits_does_not_matter(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    before = {"impressions": 3 * torch.randn(50, 10, generator=generator)}
    now = {"impressions": before["impressions"] + torch.randn(50, 10, generator=generator)}
    scaled = [{"impressions": factor * logits["impressions"]} for logits in (before, now)]
    assert meter.moved(*scaled) == pytest.approx(meter.moved(before, now))


def test_a_backdoor_that_is_removed_costs_nothing() -> None:
    """Every image's logit of the attacker's class falls, by much and not alike: no other class is touched."""
    generator = torch.Generator().manual_seed(0)
    before = {"impressions": 3 * torch.randn(50, 10, generator=generator)}
    now = {"impressions": before["impressions"].clone()}
    now["impressions"][:, 4] -= 5 + torch.rand(50, generator=generator)
    assert meter.class_apart(before, now) == 4
    assert meter.moved(before, now)["moved impressions"] == pytest.approx(0.0, abs=1e-6)


def test_an_effort_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    each = meter.effort(on(network()))
    # A convolution of 3 to 8 channels on 6 x 6 places, and a Linear of 8 to 4; twice, as an addition is one, too.
    assert each == meter.PASSES * 2 * (8 * 27 * 36 + 8 * 4)
    monkeypatch.setattr(meter, "EFFORT", 50 * each)
    assert meter.count_for(each) == 50
    assert meter.count_for(each / 1e6) == meter.COUNT
    assert meter.count_for(each * 1e6) == meter.LEAST


def test_no_edit_costs_nothing(shown: meter.Shown) -> None:
    damage = meter.predict(shown, on(network()), SCALE)
    assert (damage.loss, damage.low, damage.high) == (0.0, 0.0, 0.5)
    assert set(damage.changed) == {"leaves", "impressions", "pairs"}
    assert set(damage.changed.values()) == {0.0}
    assert all(not share for share in damage.recall)


def test_loss_and_interval_by_hand(shown: meter.Shown) -> None:
    edited = network()
    with torch.no_grad():
        edited[0].weight[:3] = 0
    damage = meter.predict(shown, on(edited), SCALE)
    seen = meter.features(shown, on(edited))
    assert damage.loss == pytest.approx(seen["moved leaves"] ** 1.25 + 2 * seen["moved pairs"] ** 1.25)
    assert 0 < damage.loss < 100
    assert damage.high == pytest.approx(min(100, 4 * damage.loss + 0.5))
    assert damage.low == pytest.approx(max(0, damage.loss / 2 - 0.5))


def test_a_class_that_is_never_answered_again(shown: meter.Shown) -> None:
    edited = copy.deepcopy(network())
    with torch.no_grad():
        edited[-1].bias[2] = -1e4
    answered = shown.before["impressions"].argmax(1)
    assert 2 in answered.tolist()
    damage = meter.predict(shown, on(edited), SCALE)
    assert damage.recall[2] == 1.0
    assert damage.apart == 2
    assert damage.loss == pytest.approx(0.0, abs=1e-3)  # of the other classes
    assert "Left out, as the class whose answers moved most: 2; of its own generated images it lost 100%" in (
        damage.to_text()
    )


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
    assert set(scale.weights) <= {f"moved {kind}" for kind in ("leaves", "impressions", "pairs")}
    assert all(weight > 0 for weight in scale.weights.values())  # so that a larger change never costs less
    assert min(scale.below, scale.above) >= 1
    assert scale.rest >= 0
