"""Images for a method that is given none: their form, their statistics, and that the network is left as it was."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trained_toys import CLASSES, SIDE, TARGET, trained
from unbackdoor.defender import surrogates
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.photographs import photographs
from unbackdoor.defender.surrogates import (
    _statistics,
    dead_leaves,
    impressions,
    impressions_of,
    random_spectra,
    total_variation,
)
from unbackdoor.inputs import InputSpec

CIFAR = InputSpec(shape=(3, 32, 32), mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
FAMILIES = pytest.mark.parametrize("family", [dead_leaves, random_spectra, photographs], ids=lambda f: f.__name__)
Family = Callable[[int, InputSpec, torch.Generator], Tensor]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@FAMILIES
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 24, 40), (3, 160, 160)])
def test_any_form_of_image(family: Family, shape: tuple[int, int, int]) -> None:
    spec = InputSpec(shape=shape, mean=(0.0,) * shape[0], std=(1.0,) * shape[0])
    images = family(3, spec, _generator())
    assert images.shape == (3, *shape)
    assert 0 <= float(images.min()) < float(images.max()) <= 1


@FAMILIES
def test_a_seed_gives_the_same_images_and_another_others(family: Family) -> None:
    first, again, other = (family(4, CIFAR, _generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first[0] - first[1]).abs().mean() > 0.02  # and each image is one of its own


@FAMILIES
def test_power_falls_with_frequency_as_in_photographs(family: Family) -> None:
    """Amplitude about 1 / f: a slope of the power between -1 and -3 in a log-log plot (Field, 1987)."""
    images = family(64, CIFAR, _generator()).mean(1)
    power = torch.fft.fft2(images - images.mean((1, 2), keepdim=True)).abs().square().mean(0)
    row = torch.log(power[0, 1:12])
    at = torch.log(torch.arange(1, 12).float())
    slope = ((at - at.mean()) * (row - row.mean())).sum() / ((at - at.mean()) ** 2).sum()
    assert -3 < float(slope) < -1


def test_what_the_network_takes_is_normalised_by_hand() -> None:
    pixels = torch.full((1, 3, 2, 2), 0.74)
    assert CIFAR.normalise(pixels)[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.26 / 0.24, 0.29 / 0.26])


def test_total_variation_by_hand() -> None:
    pixels = torch.tensor([[[[0.0, 1.0], [0.5, 1.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    assert float(total_variation(pixels)) == pytest.approx((1 + 0.25 + 0.25 + 0) / 2)


@functools.cache
def _leaves() -> Tensor:
    return dead_leaves(32, CIFAR, _generator(9))


def _network(norm: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 16, 3, padding=1), norm(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), norm(32), nn.ReLU()]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    leaves = CIFAR.normalise(_leaves())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # of one batch, not of the past
    with torch.no_grad():
        model(leaves)  # running statistics of something
        model.eval()
        model[-1].weight *= 50  # an untrained network has one favourite: here every class is within reach
        model[-1].bias -= model(leaves).mean(0)
    return model


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda c: nn.GroupNorm(4, c), lambda _: nn.Identity()])
def test_the_network_is_sure_of_its_impressions_and_left_as_it_was(norm: Callable[[int], nn.Module]) -> None:
    model = _network(norm)
    before = copy.deepcopy(model.state_dict())
    found = impressions(model, CIFAR, range(4), per_class=4, match=0.1, generator=_generator())
    assert (found.answers == found.labels).float().mean() >= 0.75
    assert found.labels.bincount().tolist() == [4] * 4
    assert (found.images >= 0).all()
    assert (found.images <= 1).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert found.images.is_contiguous()


def test_impressions_match_the_running_statistics_better_than_dead_leaves() -> None:
    model = _network(nn.BatchNorm2d)
    found = impressions(model, CIFAR, range(4), per_class=4, steps=40, match=10.0, generator=_generator())

    def distance(images: Tensor) -> float:
        x = model[0](CIFAR.normalise(images))
        off = (x.mean((0, 2, 3)) - model[1].running_mean) / model[1].running_var.sqrt()
        return float(off.square().mean())

    with torch.no_grad():
        assert distance(found.images) < distance(dead_leaves(16, CIFAR, _generator(1)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_network_of_another_precision_gets_float32_images(dtype: torch.dtype) -> None:
    model = _network(nn.BatchNorm2d).to(dtype)
    found = impressions(model, CIFAR, range(4), per_class=2, steps=40, match=0.1, generator=_generator())
    assert found.images.dtype == torch.float32
    assert (found.answers == found.labels).float().mean() >= 0.75
    assert all(parameter.dtype == dtype for parameter in model.parameters())


def test_a_seed_gives_the_same_impressions_and_another_others() -> None:
    model = _network(nn.BatchNorm2d)
    first, again, other = (
        impressions(model, CIFAR, range(4), per_class=1, steps=3, generator=_generator(seed)).images
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_images_of_one_class_are_of_that_class() -> None:
    model, spec = trained(), InputSpec(shape=(3, SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3)
    shown = OnPixels(model, spec)
    for label in (0, TARGET, CLASSES - 1):
        made = impressions_of(shown, label, 12, _generator())
        assert made.shape == (12, 3, SIDE, SIDE)
        assert float((shown.logits(made).argmax(1) == label).float().mean()) > 0.8
    assert torch.equal(made, impressions_of(shown, CLASSES - 1, 12, _generator()))


def test_images_of_one_class_are_made_among_as_many_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """By turns, so that each part that is optimised at a time has both."""
    asked: list[list[int]] = []

    def listed(_model: object, _spec: object, classes: list[int], **_more: object) -> surrogates.Impressions:
        asked.append(classes)
        labels = torch.tensor(classes)
        return surrogates.Impressions(images=labels[:, None, None, None].float(), labels=labels, answers=labels)

    monkeypatch.setattr(surrogates, "impressions", listed)
    spec = InputSpec(shape=(3, SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3)
    made = impressions_of(OnPixels(trained(), spec), TARGET, 300, _generator())
    ((classes),) = asked
    assert made.flatten().tolist() == classes[::2] == [TARGET] * 300
    assert set(classes[1::2]) == set(range(CLASSES)) - {TARGET}


def test_each_step_matches_a_share_of_the_norms_and_all_have_their_turn() -> None:
    norms = nn.Sequential(*(nn.BatchNorm2d(1) for _ in range(7))).eval()
    generator, seen = _generator(), set()
    with _statistics(norms) as statistics:
        for share, count in ((1.0, 7), (1 / 3, 2), (0.01, 1), (0, 0)):
            for _ in range(40):
                statistics.draw(share, generator)
                norms(torch.zeros(1, 1, 2, 2))
                assert len(statistics.distances) == count
                if share == 0.01:
                    seen |= statistics._drawn
    assert seen == set(norms)


def test_the_distance_of_a_norm_by_hand() -> None:
    """Mean 3 and variance 4 against 1 and 16: (2 / 4)^2 + ((2 - 4) / 4)^2."""
    norm = nn.BatchNorm2d(1, eps=0.0).eval()
    norm.running_mean.fill_(1)
    norm.running_var.fill_(16)
    with _statistics(norm) as statistics:
        statistics.draw(1.0, _generator())
        norm(torch.tensor([1.0, 5.0]).view(1, 1, 1, 2))
    assert [float(distance) for distance in statistics.distances] == pytest.approx([0.5])


def test_the_distance_of_a_norm_that_is_given_more_than_its_input_or_by_name() -> None:
    class ByDomain(nn.BatchNorm2d):
        def forward(self, x: Tensor, domain: int = 0) -> Tensor:
            return super().forward(x) + domain

    norm = ByDomain(1).eval()
    with _statistics(norm) as statistics:
        statistics.draw(1.0, _generator())
        norm(torch.zeros(1, 1, 2, 2), 3)
        norm(x=torch.zeros(1, 1, 2, 2))
        assert len(statistics.distances) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_network_on_a_cuda_device(dtype: torch.dtype) -> None:
    model = _network(nn.BatchNorm2d).to("cuda", dtype)
    found = impressions(model, CIFAR, range(4), per_class=4, match=0.1, generator=_generator())
    assert (found.answers == found.labels).float().mean() >= 0.75
    assert found.images.device.type == found.answers.device.type == "cpu"
