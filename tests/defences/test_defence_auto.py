"""`LPP.auto` and `CLP.auto`: the strongest cut within a budget, by hand and on a small network."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from layer_zoo import calibrate
from unbackdoor.defences.data_free import CLP, LPP, auto
from unbackdoor.defences.table import parse_method
from unbackdoor.defender import meter, surrogates
from unbackdoor.defender.case import Case
from unbackdoor.errors import MethodError, SettingError
from unbackdoor.findings import Damage
from unbackdoor.graph import layer_graph

EXAMPLE = torch.zeros(1, 3, 8, 8)


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "COUNT", 8)
    monkeypatch.setitem(surrogates.impressions.__kwdefaults__, "steps", 2)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)
    )
    with torch.no_grad():
        made[0].weight[3] *= 8
        made[0].weight[7] *= 6
        made[5].weight.mul_(20)
    calibrate(made, torch.randn(64, 3, 8, 8), keep_var=True)
    return made.eval()


def cut(method: LPP | CLP, model: nn.Module) -> list[int]:
    report = method(model, example=EXAMPLE).report
    return [channel for layer in report.layers for channel in layer.pruned]


def costing(monkeypatch: pytest.MonkeyPatch, of: dict[int, float]) -> None:
    """The meter says what so many pruned channels of the network cost."""

    def predict(shown: meter.Shown, after: object, scale: object = None) -> Damage:
        gone = int((after.model[1].weight == 0).sum())  # type: ignore[attr-defined]
        loss = of.get(gone, 50.0)
        return Damage(loss=loss, low=0, high=100, changed={}, images=8, recall=(), apart=None, calibrated_on="")

    monkeypatch.setattr(meter, "predict", predict)


def test_the_lowest_threshold_within_the_budget(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    costing(monkeypatch, {0: 0.0, 1: 1.0})
    plan = CLP.auto().plan(model, example=EXAMPLE)
    assert [s.pruned.nonzero()[0].tolist() for s in plan.selections] == [[3]]
    chosen = plan.settings["u"]
    assert plan.settings == {**CLP(u=chosen).settings(), "budget": 1.0}
    lower = auto.THRESHOLDS[auto.THRESHOLDS.index(chosen) + 1 :]
    assert all(len(cut(CLP(u=u), model)) > 1 for u in lower[:1])  # one step lower costs more
    costing(monkeypatch, {0: 0.0, 1: 1.0, 2: 1.0})
    assert cut(CLP.auto(), model) == [3, 7]
    costing(monkeypatch, {0: 0.0})
    assert cut(CLP.auto(), model) == []


def test_where_nothing_stays_within_the_budget_nothing_is_cut(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    costing(monkeypatch, {})
    for method in (LPP.auto(), CLP.auto()):
        plan = method.plan(model, example=EXAMPLE)
        assert plan.edits == ()
        assert plan.classifier is None


def test_a_real_meter_and_the_same_answer_twice(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    one, two = (LPP.auto(budget=5.0).plan(model, example=EXAMPLE) for _ in range(2))
    assert one.settings == two.settings
    assert one.report() == two.report()
    assert one.settings["lower"] == -one.settings["upper"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # A larger budget never takes out less.
    assert auto.strength(LPP.auto(budget=100.0).plan(model, example=EXAMPLE)) >= auto.strength(one)


def test_strength_by_hand() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 16, 1, bias=False)
            self.norm = nn.BatchNorm2d(16, eps=0.0)
            self.fc = nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.norm(self.conv(x)).mean((2, 3)))

    model = Whole().eval()
    with torch.no_grad():
        model.conv.weight.fill_(1.0)
        model.conv.weight[0] = 2.0  # of 16, one that differs lies sqrt(15) deviations out
    plan = LPP(upper=3.0, band=0.0, fc_weights=0.0).plan(model, example=torch.zeros(1, 1, 4, 4))
    assert auto.strength(plan) == pytest.approx(math.sqrt(15) - 2)
    scaled = LPP(upper=4.0, band=1.5, fc_weights=0.0).plan(model, example=torch.zeros(1, 1, 4, 4))
    (factor,) = scaled.report().layers[0].factors
    assert auto.strength(scaled) == pytest.approx((1 - factor) * (math.sqrt(15) - 2))


def test_names_and_what_it_needs(model: nn.Module) -> None:
    assert parse_method("lpp@auto") == LPP.auto() == LPP(budget=1.0)
    assert parse_method("clp:budget=2") == CLP.auto(budget=2.0)
    assert not LPP().runs
    assert LPP.auto().runs
    with pytest.raises(MethodError, match="the size of the images"):
        LPP.auto()(model)
    case = Case(network=dict(model.state_dict()), graph=layer_graph(model), example=EXAMPLE)
    with pytest.raises(SettingError, match="this method runs it"):
        CLP.auto().plan_for(case)
    with pytest.raises(SettingError, match="budget: expected"):
        dataclasses.replace(LPP(), budget=-1.0)
