"""The passive detectors: their arithmetic by hand, and what each promises."""

import dataclasses
import json
import math

import pytest
import torch
from torch import Tensor, nn

from layer_zoo import snapshot
from unbackdoor.data import DATASETS
from unbackdoor.detectors import DETECTORS, Detector, parse_detector
from unbackdoor.detectors.data_based.activation_clustering import ActivationClustering, split
from unbackdoor.detectors.data_based.neural_cleanse import NeuralCleanse, anomaly
from unbackdoor.errors import MethodError, SettingError
from unbackdoor.models import parse_arch


@pytest.fixture(params=list(DETECTORS))
def cls(request: pytest.FixtureRequest) -> type[Detector]:
    return DETECTORS[request.param]


def small(cls: type[Detector]) -> Detector:
    short = {
        "steps": 2,
        "starts": 4,
        "surrogates": 40,
        "success": 0.0,
    }  # so that any trigger of two steps is good enough
    return cls(**{f.name: short[f.name] for f in dataclasses.fields(cls) if f.name in short})


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = parse_arch("resnet18:width=4").build().eval()
        with torch.no_grad():  # as it is, one class has the answers to all images
            model.fc.bias -= model(4 * torch.rand(64, 3, 32, 32) - 2).mean(0)
        return model


def images(count: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return pixels, torch.arange(count) % 3


def test_every_detector_leaves_the_network_alone_and_repeats_itself(cls: type[Detector]) -> None:
    model = network().train()
    before, random = snapshot(model), torch.get_rng_state()
    spec = DATASETS["cifar10"]
    found = [small(cls)(model, *images(), generator=torch.Generator().manual_seed(0), spec=spec) for _ in range(2)]
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert found[0].to_json() == found[1].to_json()
    assert bool(found[0].images) == (cls.needs != "nothing")
    read = json.loads(found[0].to_json(), parse_constant=lambda word: pytest.fail(word))
    assert [c["label"] for c in read["classes"]] == list(range(10))
    assert read["settings"] == {f.name: getattr(small(cls), f.name) for f in dataclasses.fields(cls)}
    assert "proof" in found[0].to_text() or "does not prove" in found[0].to_text()


def test_what_is_missing_is_said(cls: type[Detector]) -> None:
    """Images, or, of a detector that makes its own, their size."""
    wanted = (
        "size of the images .* is not known: give it with --input"
        if cls.needs == "nothing"
        else f"{cls.name} needs {cls.needs}"
    )
    with pytest.raises((MethodError, SettingError), match=wanted):
        small(cls)(network(), generator=torch.Generator())
    with pytest.raises(SettingError, match="generator: expected a torch.Generator on the CPU, got None"):
        small(cls)(network(), *images(), spec=DATASETS["cifar10"])


def test_every_setting_is_checked(cls: type[Detector]) -> None:
    for field in dataclasses.fields(cls):
        for wrong in (math.nan, "much", None, -2, True):
            with pytest.raises(SettingError, match=rf"^{field.name}: expected .*, got "):
                cls(**{field.name: wrong})
    with pytest.raises(SettingError, match="unknown setting"):
        parse_detector(f"{cls.name}:depth=3")


def test_anomaly_by_hand() -> None:
    """Median 5, deviations 0 1 1 2 4: median 1."""
    assert anomaly([5.0, 4.0, 6.0, 7.0, 1.0]) == pytest.approx([0, 1 / 1.4826, 1 / 1.4826, 2 / 1.4826, 4 / 1.4826])
    assert anomaly([3.0, 3.0, 3.0]) == [0.0, 0.0, 0.0]


class Shortcut(nn.Module):
    """Tells eight classes by the mean of the image, unless its corner is white: then class 5."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 8)
        centres = torch.linspace(0.3, 0.7, 8)
        with torch.no_grad():
            self.fc.weight.copy_(200 * centres[:, None])
            self.fc.bias.copy_(-100 * centres**2)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fc(x.mean((1, 2, 3))[:, None])
        corner = torch.sigmoid(40 * (x[:, 0, -2:, -2:].mean((1, 2)) - 0.85))
        return logits + 60 * corner[:, None] * torch.eye(8)[5]


def test_neural_cleanse_finds_the_class_with_a_shortcut() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 8
    x = torch.linspace(0.3, 0.7, 8)[y].view(-1, 1, 1, 1) + 0.05 * torch.randn(64, 1, 8, 8, generator=generator)
    # The outer classes, which a shift of the mean reaches, need smaller masks than the inner ones: hence an index of 4.
    found = NeuralCleanse(steps=150, weight=0.05, index=4.0)(Shortcut(), x.clamp(0, 1), y, generator=generator)
    assert found.suspicious == (5,)
    assert found.classes[5].values["success"] >= 0.99
    assert found.classes[5].values["mask"] < 8  # of 64 pixels
    assert "Suspicious: class 5" in found.to_text()


def test_two_groups_are_told_apart() -> None:
    features = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    features[:20, 2] += 30
    second, score = split(features, 4, 0)
    assert second.nonzero().flatten().tolist() == list(range(20))
    assert score > 0.3
    constant, nothing = split(torch.zeros(50, 3), 2, 0)
    assert not constant.any()
    assert math.isnan(nothing)


class Features(nn.Module):
    """The image's pixels are the features."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def test_activation_clustering_finds_the_class_of_two_groups_and_its_images() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 3
    x = torch.randn(300, 1, 4, 4, generator=generator)
    poisoned = (y == 2).nonzero().flatten()[:25]
    x[poisoned, 0, 0, 0] += 40
    found = ActivationClustering(components=4)(Features(), x, y, generator=generator)
    assert found.suspicious == (2,)
    assert found.classes[2].images == tuple(poisoned.tolist())
    assert found.classes[0].images == ()
    y[:297] = y[:297] % 2
    few = ActivationClustering()(Features(), x, y, generator=generator)
    assert few.notes == ("class 2: 1 images are too few to split",)
    with pytest.raises(MethodError, match="expected at least 20 images of one class"):
        ActivationClustering()(Features(), x[:24], y[:24], generator=generator)


def test_neural_cleanse_says_nothing_of_triggers_that_never_worked() -> None:
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 8
    with pytest.raises(MethodError, match="found one for . of 8 classes; use more steps"):
        NeuralCleanse(steps=1)(Shortcut(), x, y, generator=torch.Generator().manual_seed(0))


def test_networks_without_a_single_classifier() -> None:
    class TwoHeads(Features):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1)) + self.other(x.flatten(1))

    x, y = torch.randn(60, 1, 4, 4), torch.arange(60) % 3
    with pytest.raises(MethodError, match="ac reads the classifier's inputs"):
        ActivationClustering()(TwoHeads(), x, y, generator=torch.Generator())
