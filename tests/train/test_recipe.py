"""Learning rates by hand, and what a recipe refuses."""

import random
from dataclasses import replace

import pytest
import torch

from unbackdoor.errors import SettingError
from unbackdoor.train import RECIPES, Recipe, parse_recipe
from unbackdoor.train.recipe import plateaus


def test_cosine_by_hand() -> None:
    recipe = Recipe(name="x", epochs=1, lr=0.1)
    # 0.1 * (1 + cos(pi * k / 4)) / 2
    assert [recipe.lr_at(k, 4) for k in range(5)] == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447, 0.0], abs=1e-7)


def test_onecycle_by_hand() -> None:
    recipe = Recipe(name="x", epochs=1, lr=1.0, schedule="onecycle")
    # ten steps: a fifth, two, up; then eight down, towards a zero that would be step 10
    up = [0.5, 1.0]
    down = [8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9]
    assert [recipe.lr_at(k, 10) for k in range(10)] == pytest.approx(up + down)


def test_multistep_by_hand() -> None:
    # Six epochs of two steps: tenfold less from epoch 2 on (steps 4, 5, ...) and again from epoch 5 on (steps 10, 11).
    recipe = Recipe(name="x", epochs=6, lr=1.0, schedule="multistep", milestones=(2, 5))
    assert [recipe.lr_at(k, 12) for k in range(12)] == pytest.approx([1.0] * 4 + [0.1] * 6 + [0.01] * 2)


def test_multistep_with_batches_that_do_not_divide_the_set() -> None:
    recipe = Recipe(name="x", epochs=3, lr=1.0, schedule="multistep", milestones=(1,))
    assert [recipe.lr_at(k, 9) for k in range(9)] == pytest.approx([1.0] * 3 + [0.1] * 6)


@pytest.mark.parametrize(
    ("losses", "patience", "falls"),
    [
        ([], 2, 0),
        ([3, 2, 1], 2, 0),
        ([1, 1, 1], 2, 0),  # two epochs without progress are borne
        ([1, 1, 1, 1], 2, 1),  # three are not
        ([1, 1, 1, 1, 1, 1], 2, 1),  # then counting begins anew
        ([1, 1, 1, 1, 1, 1, 1], 2, 2),
        ([1, 2, 2, 0.5, 2, 2], 2, 0),  # progress starts it anew, too
        ([1, 0.99995, 0.9999, 0.99985], 2, 0),  # 0.015 % in all, more than 0.01 %
        ([1, 0.99999, 0.99998, 0.99997], 2, 1),
        ([1, 1], 0, 1),
    ],
)
def test_plateaus_by_hand(losses: list[float], patience: int, falls: int) -> None:
    assert plateaus(losses, patience) == falls
    recipe = Recipe(name="x", epochs=9, lr=1.0, schedule="plateau", patience=patience)
    assert recipe.lr_at(5, 90, losses) == pytest.approx(0.1**falls)


@pytest.mark.parametrize("patience", [0, 1, 3, 10])
def test_plateaus_are_those_of_torch(patience: int) -> None:
    draw = random.Random(patience)
    losses = [2 / (1 + k // 7) + draw.random() / 5 for k in range(60)]
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.1, patience=patience, eps=0)
    for k, loss in enumerate(losses):
        scheduler.step(loss)
        assert 0.1 ** plateaus(losses[: k + 1], patience) == pytest.approx(optimiser.param_groups[0]["lr"])


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 391 * 15])
def test_every_learning_rate_is_between_zero_and_the_largest(name: str, steps: int) -> None:
    recipe = RECIPES[name]
    rates = [recipe.lr_at(step, steps) for step in range(steps)]
    assert all(0 < rate <= recipe.lr for rate in rates)
    assert max(rates) == pytest.approx(recipe.lr)


@pytest.mark.parametrize("epochs", [50, 100, 200])
def test_the_constant_recipe_never_falls(epochs: int) -> None:
    recipe = replace(RECIPES["backdoorbench-constant"], epochs=epochs)
    assert {recipe.lr_at(step, 1000) for step in range(1000)} == {0.01}


def test_known_recipes() -> None:
    known = {
        "fast": (15, 0.1, "onecycle"),
        "paper": (100, 0.001, "cosine"),
        "backdoorbench": (100, 0.01, "cosine"),
        "clp": (150, 0.1, "cosine"),
    }
    assert {name: (RECIPES[name].epochs, RECIPES[name].lr, RECIPES[name].schedule) for name in known} == known
    assert all(RECIPES[name].name == name for name in RECIPES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: expected a whole number of at least 1, got 0"),
        ({"lr": 0.0}, "lr: expected a finite number above 0"),
        ({"lr": -0.1}, "lr: expected a finite number above 0"),
        ({"lr": float("nan")}, "lr: expected a finite number above 0, got nan"),
        ({"lr": float("inf")}, "lr: expected a finite number above 0"),
        ({"batch_size": 1}, "batch_size: expected a whole number of at least 2"),
        ({"schedule": "linear"}, "schedule: expected one of cosine.* got 'linear'"),
        ({"crop_padding": -1}, "crop_padding: expected a whole number of at least 0"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Recipe(**{"name": "x", "epochs": 1, "lr": 0.1, **settings})


def test_a_recipe_with_settings() -> None:
    recipe = parse_recipe("fast:optimiser=adam,lr=1,crop_padding=0,flip=false")
    assert recipe == replace(
        RECIPES["fast"],
        name="fast:optimiser=adam,lr=1,crop_padding=0,flip=false",
        optimiser="adam",
        lr=1.0,
        crop_padding=0,
        flip=False,
    )
    assert parse_recipe("paper") is RECIPES["paper"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quick", "quick"),
        ("fast:optimizer=adam", "recipe fast: unknown setting 'optimizer'; it has .*optimiser"),
        ("fast:optimiser=lamb", "optimiser: expected .*adam.*, got 'lamb'"),
        ("fast:flip=2", "flip: expected bool, got 2"),
        ("fast:lr=-1", "lr: expected"),
        ("fast:lr=high", "lr: expected"),
        ("fast:name=slow", "name and milestones cannot be given"),
        ("fast:milestones=3", "name and milestones cannot be given"),
        ("fast:epochs", "expected key=value"),
    ],
)
def test_a_wrong_recipe_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        parse_recipe(text)
