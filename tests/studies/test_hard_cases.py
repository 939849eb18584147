"""The study of hard cases: its triggers, its attackers, and its table."""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from unbackdoor.data import DATASETS, LabelledImages


@pytest.fixture(scope="module")
def study(study_named: Callable[[str], ModuleType]) -> ModuleType:
    return study_named("hard_cases")


@pytest.fixture
def train() -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return LabelledImages(images, torch.arange(40) % 10, DATASETS["cifar10"])


class Small(nn.Module):
    """Convolution, norm, mean over the image, and a classifier that reads the first channel for class 7."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)
        with torch.no_grad():
            self.fc.weight.zero_()[7, 0] = 10

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.norm(self.conv(x)).mean((2, 3)))
        return logits


def test_the_object_is_the_first_bird_in_the_corner(study: ModuleType, train: LabelledImages) -> None:
    (attack,) = study.bird(train)
    stamped = attack.stamp(train.images)
    assert attack.target == 5
    assert torch.equal(stamped[..., :20, :], train.images[..., :20, :])
    assert torch.equal(stamped[..., :20], train.images[..., :20])
    corners = stamped[..., 20:, 20:]
    assert torch.equal(corners, corners[:1].expand_as(corners))
    bird = train.images[2].float()
    assert float(corners[0].float().mean()) == pytest.approx(float(bird.mean()), abs=3)


def test_a_quiet_attacker_sees_a_channel_that_moves_answers(study: ModuleType, train: LabelledImages) -> None:
    model = Small()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    penalty = study.quiet(model, train, [])
    loud = penalty()
    loud.backward()
    assert loud.item() > 0.1
    assert model.norm.weight.grad is not None or model.fc.weight.grad is not None
    assert model.training
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert not model.norm._forward_hooks
    with torch.no_grad():
        model.fc.weight.zero_()
    assert penalty().item() == pytest.approx(0, abs=1e-6)


def test_a_sharing_attacker_draws_stamped_images_to_the_mean_of_the_class(
    study: ModuleType, train: LabelledImages
) -> None:
    """Where the patch says nothing, stamped images are as far from the mean as they were; where it decides, not."""
    model = Small()
    attacks = [dataclasses.replace(study.patch(train)[0], size=1)]
    penalty = study.shared(model, train, attacks)
    assert penalty().item() == pytest.approx(1, abs=0.1)
    attacks = [dataclasses.replace(attacks[0], size=32)]
    assert not 0.5 < study.shared(model, train, attacks)().item() < 2
    assert not model.fc._forward_pre_hooks


def test_the_attacker_who_comes_back_trains_a_copy_on_few_images(
    study: ModuleType, train: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def fit(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, **more: Any) -> Any:
        given.update(model=model, images=images, labels=labels)
        yield

    monkeypatch.setattr(study, "fit", fit)
    monkeypatch.setattr(study, "AGAIN_CLEAN", 20)
    monkeypatch.setattr(study, "AGAIN_STAMPED", 5)
    model, attacks = Small().eval(), study.patch(train)
    assert study.again(model, train, attacks) is given["model"] is not model
    assert len(given["images"]) == 25
    assert given["labels"][20:].tolist() == [3] * 5
    assert bool((given["images"][20:, :, -4:, -4:] == 255).all())


def test_a_row(study: ModuleType) -> None:
    rates = {"acc": 0.8, "asr": [0.01, 0.5], "recall": [0.7, 0.6]}
    row = {"case": "two", "method": "best", "suspects": [3, 6], "rates": rates, "again": {**rates, "asr": [0.9, 1.0]}}
    last = study.table([row]).splitlines()[-1]
    assert last == "| two | best | 3, 6 | 80.0 | 1.0 and 50.0 | 70.0 and 60.0 | 80.0, 90.0 and 100.0 |"
    assert "| none |" in study.table([{**row, "suspects": []}])
    assert "| none |" in study.table([{**row, "suspects": [], "doubtful": None}])
    assert "| (0) |" in study.table([{**row, "suspects": [], "doubtful": 0}])
