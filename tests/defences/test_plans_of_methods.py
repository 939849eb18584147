"""Every method answers a plan: it does what the method does, it can be undone, and it chooses what it always chose."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layer_zoo import bits
from unbackdoor.data import DATASETS
from unbackdoor.defences.table import DEFENCES, parse_method
from unbackdoor.defender.case import Case
from unbackdoor.errors import MethodError, PlanError, SettingError
from unbackdoor.models import parse_arch

SPEC = DATASETS["cifar10"]
#: Methods that score channels of norms: their plans change no other tensor.
NORMS = {
    "bnp": {"u": 0.5},
    "ep": {"u": 0.5, "batch_size": 12},
    "anp": {"iterations": 1, "threshold": 1.0},
    "rnp": {"threshold": 1.0},
}
SHORT = {"iterations": 1, "rounds": 1, "holdout": 0.0, "epoch_images": 8, "batch_size": 6}


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = parse_arch("preactresnet18:width=4").build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias, std=0.3)
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def small() -> nn.Module:
    """Two resolutions, two norms."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = (nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
        second = (nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(*first, *second, nn.Linear(8, 4)).eval()


def images(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (120, 3, 32, 32), generator=generator, dtype=torch.uint8)[:count]
    return pixels, torch.arange(count) % 10


def short(name: str) -> Any:
    kind = DEFENCES[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    quick = {key: value for key, value in SHORT.items() if key in fields}
    quick |= {key: 1 for key in fields if key.endswith("epochs")}
    if name == "fp":
        quick["tolerance"] = 1.0  # random answers to random images have no accuracy to lose
    return kind(**{**quick, **NORMS.get(name, {})})


def state(model: nn.Module) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", [name for name in DEFENCES if DEFENCES[name].needs != "nothing"])
def test_a_plan_does_what_the_method_does_and_is_undone_bit_for_bit(name: str) -> None:
    model = small().half()
    given = (torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(12) % 4)
    method, before = short(name), state(model)
    plan = method.plan(model, *given, generator=torch.Generator().manual_seed(0))
    assert state(model) == before
    outcome = method(model, *given, generator=torch.Generator().manual_seed(0))
    assert plan.edits
    plan.apply_(model)
    assert state(model) == state(outcome.model) != before
    with pytest.raises(PlanError, match="make a new plan"):
        plan.apply_(model)
    plan.undo(model)
    assert state(model) == before
    assert plan.report(action="defend").to_json() == outcome.report.to_json()
    if name in NORMS:
        parts = {edit.name.rpartition(".")[2] for edit in plan.edits}
        assert parts == {"weight"}  # beta is kept
        assert {edit.name for edit in plan.edits} <= {"1.weight", "5.weight"}
        pruned = sum(len(layer.pruned) for layer in plan.report().layers)
        assert pruned == sum(edit.after.numel() for edit in plan.edits)
        assert all(not edit.after.any() for edit in plan.edits)


RECORDED: dict[str, dict[str, list[int]]] = {
    "bnp:u=1": {
        "layer1.0.bn1": [0],
        "layer1.1.bn1": [1],
        "layer1.1.bn2": [1],
        "layer2.0.bn1": [2],
        "layer2.0.bn2": [6],
        "layer2.1.bn1": [7],
        "layer2.1.bn2": [0],
        "layer3.0.bn1": [2],
        "layer3.0.bn2": [1, 2],
        "layer3.1.bn1": [5, 11],
        "layer3.1.bn2": [0, 9, 10, 14],
        "layer4.0.bn1": [4, 11],
        "layer4.0.bn2": [10, 12, 22, 26, 29],
        "layer4.1.bn1": [9, 15, 27, 31],
        "layer4.1.bn2": [7, 13, 21, 22, 27, 29, 31],
    },
    "ep:u=1.375": {
        "layer2.1.bn1": [4],
        "layer2.1.bn2": [3],
        "layer3.0.bn2": [14, 15],
        "layer3.1.bn1": [1, 15],
        "layer3.1.bn2": [12, 15],
        "layer4.0.bn1": [11, 15],
        "layer4.0.bn2": [22, 30],
        "layer4.1.bn1": [3, 17, 26],
        "layer4.1.bn2": [0, 14, 29],
    },
    "clp:u=1.5": {
        "layer2.0.shortcut.0": [2],
        "layer2.0.conv1": [3],
        "layer2.1.conv2": [6],
        "layer3.0.shortcut.0": [6, 9],
        "layer3.0.conv1": [10],
        "layer3.0.conv2": [14],
        "layer3.1.conv1": [0, 8],
        "layer4.0.shortcut.0": [28],
        "layer4.0.conv1": [19, 27],
        "layer4.0.conv2": [17, 30],
        "layer4.1.conv1": [8, 21],
        "layer4.1.conv2": [0, 9, 18, 28],
    },
    "lpp:scale=weight,upper=1.5": {
        "layer1.1.conv1": [3],
        "layer1.1.conv2": [1],
        "layer2.0.shortcut.0": [2],
        "layer2.0.conv1": [3],
        "layer2.0.conv2": [3],
        "layer3.0.shortcut.0": [6, 9],
        "layer3.0.conv1": [10],
        "layer3.1.conv1": [0, 8],
        "layer3.1.conv2": [1, 10],
        "layer4.0.shortcut.0": [28],
        "layer4.0.conv1": [27],
        "layer4.0.conv2": [2, 17],
        "layer4.1.conv1": [8, 21],
        "layer4.1.conv2": [7, 29],
    },
}


@pytest.mark.parametrize("text", RECORDED)
def test_the_channels_are_those_that_were_recorded(text: str) -> None:
    """Recorded when each method had a rule and an edit of its own; EP's later, at a threshold that no score is near:
    its histograms of few images make scores jump with the rounding."""
    x, y = images(120)
    case = Case(network=network(), images=x, labels=y, spec=SPEC, generator=torch.Generator().manual_seed(3))
    found = parse_method(text).run(case).report
    assert {layer.path: list(layer.pruned) for layer in found.layers if layer.pruned} == RECORDED[text]


def test_what_a_case_lacks_is_said() -> None:
    model, method = network(), parse_method("bnp")
    with pytest.raises(SettingError, match="bnp needs clean images: give images and labels"):
        method(model, generator=torch.Generator())
    with pytest.raises(SettingError, match="expected images and labels as tensors"):
        method(model, images(4)[0], spec=SPEC, generator=torch.Generator())
    with pytest.raises(SettingError, match="generator: expected a torch.Generator on the CPU, got None"):
        method(model, *images(4), spec=SPEC)
    with pytest.raises(SettingError, match="tensors without a network"):
        method.plan(model.state_dict(), *images(4), spec=SPEC, generator=torch.Generator())


def test_a_repair_that_would_not_be_finite_is_refused() -> None:
    """A learning rate at which fine-tuning diverges: nothing is written that half precision cannot hold."""
    method = parse_method("ft:epochs=2,lr=1000,momentum=0")
    with pytest.raises(MethodError, match=r"ft: training diverged: .* would hold numbers that are not finite"):
        method(
            small().half(), torch.randn(12, 3, 8, 8), torch.arange(12) % 4, generator=torch.Generator().manual_seed(0)
        )
