"""The head quadratic programme: by hand, by the conditions of an optimum, and on networks with a planted short way."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from unbackdoor.defender.case import Case
from unbackdoor.defender.deviations import deviations
from unbackdoor.defender.head import multipliers
from unbackdoor.defender.surrogates import dead_leaves
from unbackdoor.detectors.data_free.head_program import HeadProgramme
from unbackdoor.errors import MethodError, SettingError
from unbackdoor.inputs import InputSpec, Normalisation

PLAIN = Normalisation(mean=(0.0,), std=(1.0,))
EXAMPLE = torch.zeros(2, 1, 8, 8)
ROWS = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])


def solved(rows: np.ndarray, demands: list[float], label: int) -> np.ndarray | None:
    """s itself."""
    dual = multipliers(rows @ rows.T, np.array(demands), label)
    return None if dual is None else dual @ (rows[label] - rows)


@pytest.mark.parametrize(
    ("demands", "wanted", "dual"),
    [
        # Rows of class 0 less the others: (1, -1) and (2, 1).
        ([9, 2, 0], [1, -1], [0, 1, 0]),
        ([9, 3, 3], [2, -1], [0, 4 / 3, 1 / 3]),
        ([9, -3, 5], [2, 1], [0, 0, 1]),
        ([9, -1, -2], [0, 0], [0, 0, 0]),
    ],
)
def test_two_dimensions_and_three_classes_by_hand(demands: list[float], wanted: list[float], dual: list[float]) -> None:
    assert solved(ROWS, demands, 0) == pytest.approx(wanted, abs=1e-9)
    assert multipliers(ROWS @ ROWS.T, np.array(demands, dtype=float), 0) == pytest.approx(dual, abs=1e-9)


def test_what_no_change_reaches() -> None:
    line = np.array([[-1.0], [0.0], [1.0]])
    assert solved(line, [1, 0, 1], 1) is None  # s >= 1 and -s >= 1
    assert solved(line, [1, 0, -3], 1) == pytest.approx([1])
    twins = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert solved(twins, [0, 1, 1], 0) is None
    assert solved(twins, [0, -1, 1], 0) == pytest.approx([0.5, -0.5])


@pytest.mark.parametrize("seed", range(12))
def test_the_conditions_of_an_optimum(seed: int) -> None:
    random = np.random.default_rng(seed)
    classes, width = int(random.integers(3, 60)), int(random.integers(1, 40))
    rows = random.normal(size=(classes, width)) * 10.0 ** random.integers(-3, 4)
    label = int(random.integers(classes))
    demands = random.normal(1, 1, classes) * 10.0 ** random.integers(-3, 4)
    dual = multipliers(rows @ rows.T, demands, label)
    others = np.delete(np.arange(classes), label)
    gaps = rows[label] - rows[others]
    if dual is None:
        assert linprog(np.zeros(width), -gaps, -demands[others], bounds=(None, None)).status == 2
        return
    s = dual[others] @ gaps
    slack = gaps @ s - demands[others]
    small = 1e-7 * np.abs(demands).max()
    assert dual.min() >= 0
    assert dual[label] == 0
    assert slack.min() >= -small
    assert np.abs(slack[dual[others] > 0]).max(initial=0) <= small
    assert float(s @ s) == pytest.approx(float(dual @ demands))


def test_many_classes_and_few_dimensions() -> None:
    random = np.random.default_rng(0)
    rows, inputs = random.normal(size=(300, 50)), np.abs(random.normal(size=(200, 50)))
    logits = inputs @ rows.T
    for label in range(0, 300, 50):
        others = logits[logits.argmax(1) != label]
        s = solved(rows, list((others - others[:, [label]]).max(0)), label)
        if s is not None:
            moved = (others + rows @ s) - (others[:, [label]] + rows[label] @ s)
            assert moved.max() <= 1e-6 * np.abs(others).max()


def test_deviations_by_hand() -> None:
    """Median 5, distances 0 1 1 2 4: median 1."""
    assert deviations([5.0, 4.0, 6.0, 7.0, 1.0]) == pytest.approx([x / 1.4826 for x in (0, -1, 1, 2, -4)])
    assert deviations([3.0, 3.0, 1.0, 3.0, 4.0]) == [0.0, 0.0, -math.inf, 0.0, math.inf]


class Toy(nn.Module):
    """Ten classes from random features of 8 x 8 grey images, and one feature that fires on a white corner alone."""

    def __init__(self, *, convolution: bool = False) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.first = nn.Conv2d(1, 40, 8)
        self.fc = nn.Conv2d(41, 10, 1) if convolution else nn.Linear(41, 10)
        rows = torch.zeros(10, 41)
        rows[:, :40] = torch.linalg.qr(torch.randn(40, 10, generator=draw)).Q.T
        leaves = dead_leaves(200, InputSpec(shape=(1, 8, 8), mean=(0.0,), std=(1.0,)), draw)
        filters = torch.randn(40, 1, 8, 8, generator=draw)
        with torch.no_grad():
            self.first.weight.copy_(filters - filters.mean((2, 3), keepdim=True))
            self.first.bias.zero_()
            features = torch.relu(self.first(leaves).flatten(1))
            self.fc.weight.copy_(rows.view_as(self.fc.weight))
            self.fc.bias.copy_(-rows[:, :40] @ features.mean(0))  # so that no class has most of the answers

    def forward(self, x: Tensor) -> Tensor:
        corner = 20 * torch.relu(x[:, :, -2:, -2:].mean((2, 3)) - 0.95)
        features = torch.cat([torch.relu(self.first(x).flatten(1)), corner], 1)
        if isinstance(self.fc, nn.Conv2d):
            return self.fc(features[:, :, None, None]).flatten(1)
        return self.fc(features)


def looked(model: nn.Module, seed: int = 0, **settings: float):
    return HeadProgramme(surrogates=80, **settings)(
        model, example=EXAMPLE, normalisation=PLAIN, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("convolution", [False, True])
def test_a_planted_short_way_is_found(convolution: bool) -> None:
    model = Toy(convolution=convolution)
    assert looked(model).suspicious == ()
    with torch.no_grad():
        model.fc.weight[5, 40] = 40
    found = looked(model)
    assert found.suspicious == (5,)
    assert found.classes[5].values["deviations"] < -4
    assert found.images == 0
    assert sum(one.values["surrogates"] for one in found.classes) == pytest.approx(1)
    assert found.to_json() == looked(model).to_json()
    assert found.classes != looked(model, seed=1).classes
    assert looked(model, deviations=1e5).suspicious == ()


def test_a_class_that_is_hard_to_reach_is_found() -> None:
    model = Toy()
    with torch.no_grad():
        model.fc.weight[5] = model.fc.weight[3] + 0.02 * torch.randn(41, generator=torch.Generator().manual_seed(0))
        model.fc.bias[5] = model.fc.bias[3] - 1
    found = looked(model)
    assert found.suspicious == (5,)
    assert found.classes[5].values["deviations"] > 4


def test_a_class_that_nothing_reaches_is_not_compared() -> None:
    model = Toy()
    with torch.no_grad():
        model.fc.weight[5] = model.fc.weight[3]
        model.fc.bias[5] = model.fc.bias[3] - 1
    found = looked(model)
    assert found.classes[5].values["norm"] is None
    assert not found.classes[5].suspicious
    assert found.notes[:-1] == ("not compared, since no one change sends all images there: class 5",)


def test_a_class_that_has_all_images_is_not_compared() -> None:
    model = Toy()
    with torch.no_grad():
        model.fc.bias[5] += 100
    found = looked(model)
    assert found.classes[5].values["norm"] is None
    assert found.notes[:-1] == (
        "class 5, the answer to 100% of the generated images, is not compared: no image was left",
    )


class Two(nn.Module):
    """Its answers are a sum of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(64, 5), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x.flatten(1)) + self.other(x.flatten(1))


class Bent(Two):
    """Its answers are not those of its last layer."""

    def forward(self, x: Tensor) -> Tensor:
        return -self.one(x.flatten(1))


def test_what_it_cannot_look_at() -> None:
    with pytest.raises(MethodError, match="this network has no single one: one, other"):
        looked(Two())
    for network, says in [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), "expected a network of 2 or more classes, got 1"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), "expected 3 or more classes, got 2"),
        (nn.Sequential(nn.Flatten(), nn.Linear(60, 4)), "fails on images of 1x8x8"),
    ]:
        with pytest.raises(MethodError, match=says):
            looked(network)
    broken = Toy()
    with torch.no_grad():
        broken.fc.weight[2, 3] = math.nan
    with pytest.raises(MethodError, match="NaN"):
        looked(broken)
    empty = Toy()
    with torch.no_grad():
        empty.fc.weight.zero_()
    with pytest.raises(MethodError, match="expected 3 or more classes that a change of fc's input reaches, found 0"):
        looked(empty)
    with pytest.raises(MethodError, match="something after it changes them|no single one"):
        looked(Bent())


def test_what_it_must_be_told() -> None:
    with pytest.raises(MethodError, match="--input 3x32x32"):
        HeadProgramme()(Toy(), generator=torch.Generator())
    with pytest.raises(SettingError, match="tensors without a network"):
        HeadProgramme().run(Case(network=Toy().state_dict(), generator=torch.Generator()))
