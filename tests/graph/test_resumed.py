"""A network that goes on from what it computed before answers as one that runs whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.defender import on_pixels
from unbackdoor.defender.on_pixels import OnPixels, going_on
from unbackdoor.graph import resumed
from unbackdoor.inputs import InputSpec
from unbackdoor.models.densenet import densenet121
from unbackdoor.models.resnet import resnet18
from unbackdoor.models.vit import vit_small

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
PIXELS = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ROWS = torch.tensor([4, 0, 0, 5, 2])


class InPlace(nn.Module):
    """Residual, and writes into what its modules return; one activation stands for all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.relu, self.norm, self.fc = nn.ReLU(inplace=True), nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        out = self.second(x)
        out += x
        out = self.relu(out)
        out = self.third(out)
        out += x
        return self.fc(self.relu(out).mean((2, 3)))


class Pair(nn.Module):
    """Returns two things."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x)
        return x, -x


class TwoThings(nn.Module):
    """One module returns a pair, one folds the images' rows into the batch, one gives what is no image's."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.rows, self.scale = Pair(), nn.Linear(8, 8), nn.Linear(1, 1)
        self.last, self.fc = nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.pair(x)
        x = self.rows((one + other.abs()).flatten(0, 2)).view_as(one)
        x = x * self.scale(torch.ones(1, 1))
        return self.fc(torch.relu(self.last(x)).mean((2, 3)))


class OfTheBatch(nn.Module):
    """What it answers to an image depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(x + x[:1])
        return self.fc(x.mean((2, 3)))


class Gated(nn.Module):
    """An early module decides, by a comparison, which classifier answers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.first, self.second = nn.Linear(3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.one, self.other = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        decided = self.gate(x.mean((2, 3))) > 0
        x = self.second(torch.relu(self.first(x))).mean((2, 3))
        return torch.where(decided, self.one(x), self.other(x))


class Leaves(nn.Module):
    """Keeps something beside its result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.kept = nn.Conv2d(3, 3, 1), torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.conv(x)
        return torch.relu(self.kept)


class WhatIsLeft(nn.Module):
    """Takes what a module left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.fc = Leaves(), nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.last(self.stem(x)) + self.stem.kept).mean((2, 3)))


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for one in model.modules():
        if isinstance(one, nn.BatchNorm2d):
            nn.init.uniform_(one.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(one.running_mean, std=0.1, generator=generator)
    return model.eval().requires_grad_(False)


def at_place(network: OnPixels, place: str, change: Callable[[Tensor], Tensor]) -> object:
    return network.model.get_submodule(place).register_forward_hook(lambda _module, _inputs, result: change(result))


def models() -> list[tuple[nn.Module, tuple[int, int, int], str]]:
    torch.manual_seed(0)
    return [
        (InPlace(), (3, 8, 8), "third"),
        (InPlace(), (3, 8, 8), "first"),
        (TwoThings(), (3, 8, 8), "last"),
        (resnet18(num_classes=4, width=4), (3, 16, 16), "layer3.1.bn1"),
        (densenet121(num_classes=4, growth=4), (3, 16, 16), "features.40.conv2"),
        (vit_small(num_classes=4, width=12, depth=3, patch=8), (3, 32, 32), "blocks.1.mlp.0"),
    ]


@pytest.mark.parametrize("number", range(6))
def test_the_same_answers_and_gradients(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the modules return, and whoever writes into it."""
    model, shape, place = models()[number]
    names = dict(model.named_modules())
    if place not in names:
        pytest.fail(f"{place} is not among {sorted(names)}")
    monkeypatch.setattr(on_pixels, "CHUNK", 4)
    spec = InputSpec(shape=shape, mean=(0.5,) * 3, std=(0.5,) * 3)
    network = OnPixels(randomised(model), spec, exact=True)
    pixels = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1))
    forwards = {path: one.__dict__.get("forward") for path, one in network.model.named_modules()}
    added = torch.full((), 0.7, requires_grad=True)
    with going_on(network, [place], pixels, asked=10**6) as answer:
        handle = at_place(network, place, lambda result: result + added)
        found = answer(ROWS)
        (slope,) = torch.autograd.grad(found[:, 1].sum(), added)
        again = answer(ROWS.flip(0))
    wanted = network(pixels[ROWS])
    (expected,) = torch.autograd.grad(wanted[:, 1].sum(), added)
    handle.remove()  # type: ignore[attr-defined]
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(again.flip(0), wanted, atol=1e-5)
    assert slope == pytest.approx(float(expected), abs=1e-4)
    assert {path: one.__dict__.get("forward") for path, one in network.model.named_modules()} == forwards
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in network.model.modules())


def test_what_lies_before_the_place_is_run_once() -> None:
    network = OnPixels(randomised(resnet18(num_classes=4, width=4)), SPEC, exact=True)
    runs = {"layer1.0.conv1": 0, "layer4.0.conv1": 0}

    def counted(path: str) -> Callable[..., Tensor]:
        forward = network.model.get_submodule(path).forward

        def run(x: Tensor) -> Tensor:
            runs[path] += 1
            return forward(x)

        return run

    for path in runs:
        network.model.get_submodule(path).forward = counted(path)  # type: ignore[method-assign]
    with going_on(network, ["layer3.1.bn1"], PIXELS, asked=10**6) as answer:
        begun = dict(runs)
        for _ in range(5):
            answer(ROWS)
    assert runs["layer1.0.conv1"] == begun["layer1.0.conv1"]
    assert runs["layer4.0.conv1"] == begun["layer4.0.conv1"] + 5
    with going_on(network, ["layer3.1.bn1"], PIXELS, asked=5) as answer:  # not worth it
        answer(ROWS)
    assert runs["layer1.0.conv1"] == begun["layer1.0.conv1"] + 1


def test_images_that_depend_on_each_other_are_run_whole() -> None:
    torch.manual_seed(0)
    network = OnPixels(OfTheBatch().eval().requires_grad_(False), SPEC, exact=True)
    with going_on(network, ["fc"], PIXELS, asked=10**6) as answer:
        assert torch.equal(answer(ROWS), network(PIXELS[ROWS]))


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_what_decides_by_a_comparison_is_kept(sign: float) -> None:
    """On the first two images, on which it is tried, the gate comes out as it does with some stand-ins."""
    torch.manual_seed(0)
    model = Gated().eval().requires_grad_(False)
    model.gate.weight.fill_(sign)
    model.gate.bias.fill_(-sign * 1.5)  # dark images one way, bright ones the other
    pixels = PIXELS / 5 + torch.tensor([0.0, 0.0, 0.8, 0.0, 0.8, 0.8])[:, None, None, None]
    network = OnPixels(model, InputSpec(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3), exact=True)
    with going_on(network, ["second"], pixels, asked=10**6) as answer:
        assert torch.allclose(answer(ROWS), network(pixels[ROWS]), atol=1e-6)


def test_what_a_module_leaves_behind_is_not_of_other_images() -> None:
    torch.manual_seed(0)
    network = OnPixels(WhatIsLeft().eval().requires_grad_(False), SPEC, exact=True)
    for pixels in (PIXELS, PIXELS[:2], PIXELS[:1]):
        rows = torch.arange(len(pixels)).flip(0)
        with going_on(network, ["last"], pixels, asked=10**6) as answer:
            assert torch.allclose(answer(rows), network(pixels[rows]), atol=1e-6)


def test_too_much_to_keep_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumed, "MOST", 10)
    network = OnPixels(randomised(InPlace()), SPEC, exact=True)
    with going_on(network, ["third"], PIXELS, asked=10**6) as answer:
        assert "forward" not in network.model.get_submodule("first").__dict__
        assert torch.equal(answer(ROWS), network(PIXELS[ROWS]))
