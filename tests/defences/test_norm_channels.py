"""Masks over norms, against networks whose weights were really multiplied."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.defences.data_based.anp import ANP, worst_noise
from unbackdoor.defences.data_based.base import DataBased
from unbackdoor.defences.data_based.bnp import BNP
from unbackdoor.defences.data_based.ep import EP
from unbackdoor.defences.data_based.norm_channels import NOTHING, NormChannels
from unbackdoor.defences.data_based.rnp import RNP
from unbackdoor.defender.images import DefenderData
from unbackdoor.errors import MethodError
from unbackdoor.graph import layer_graph
from unbackdoor.graph.tensors import Tensors
from unbackdoor.models import parse_arch
from unbackdoor.prune import Editor


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = parse_arch("preactresnet18:width=4").build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model


@pytest.mark.parametrize("training", [False, True])
def test_masked_logits_are_those_of_a_network_with_multiplied_weights(model: nn.Module, training: bool) -> None:
    channels = NormChannels(model, layer_graph(model), "test")
    generator = torch.Generator().manual_seed(0)
    gain, shift = torch.rand(2, channels.total, generator=generator) + 0.5
    other = copy.deepcopy(model)
    modules = dict(other.named_modules())
    with torch.no_grad():
        for path, factors in channels.by_norm(gain).items():
            modules[path].weight.mul_(factors)
        for path, factors in channels.by_norm(shift).items():
            modules[path].bias.mul_(factors)
    model.train(training)
    other.train(training)
    x = torch.randn(4, 3, 32, 32, generator=generator)
    assert torch.allclose(channels(x, gain, shift), other(x), atol=1e-6)
    assert channels.total == sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def switch_off(model: nn.Module, channels: NormChannels, masks: dict[str, Tensor], *, beta: str) -> None:
    found = channels.population({path: mask.float() for path, mask in masks.items()})
    editor = Editor(Tensors(model), layer_graph(model), beta=beta)
    for selection in found.selections(high=found.values > 0, by_deviation=False):
        assert editor.layer(selection) is selection
    with torch.no_grad():
        for edit in editor.edits:
            dict(model.named_parameters())[edit.name][edit.index] = edit.after


def test_switching_off(model: nn.Module) -> None:
    channels = NormChannels(model, layer_graph(model), "test")
    masks = channels.by_norm(torch.arange(channels.total) % 7 == 0)
    before = copy.deepcopy(model.state_dict())
    switch_off(model, channels, masks, beta="keep")
    for name, tensor in model.state_dict().items():
        path, _, kind = name.rpartition(".")
        if path in masks and kind == "weight":
            assert torch.equal(tensor == 0, masks[path])
        else:
            assert torch.equal(tensor, before[name])
    switch_off(model, channels, masks, beta="zero")
    for path, mask in masks.items():
        assert torch.equal(model.get_submodule(path).bias == 0, mask)


def test_the_threshold_is_the_largest_that_keeps_the_accuracy() -> None:
    """Channel 0 decides; channels 1 and 2 say nothing."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[3].weight.copy_(torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]]))
        model[3].bias.zero_()
    model.eval()
    x = torch.tensor([-1.0, 1.0]).repeat(10).view(-1, 1, 1, 1)
    held = DefenderData(x, (x.flatten() > 0).long(), None)
    channels = NormChannels(model, layer_graph(model), "test")
    chosen = channels.choose_threshold(torch.tensor([0.62, 0.1, 0.3]), held, tolerance=0.05, beta="keep")
    assert chosen == 0.6
    assert channels.choose_threshold(torch.tensor([0.01, 0.0, 0.3]), held, tolerance=0.05, beta="keep") == 0.0
    assert channels.choose_threshold(torch.tensor([0.0, 0.1, 0.3]), held, tolerance=0.05, beta="keep") == NOTHING < 0
    assert channels.choose_threshold(torch.tensor([1.0, 0.1, 0.3]), held, tolerance=0.05, beta="keep") == 0.95


def test_worst_noise_climbs_by_the_sign_of_the_slope(model: nn.Module) -> None:
    model.double().requires_grad_(False).eval()
    channels = NormChannels(model, layer_graph(model), "test")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, 3, 32, 32, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (8,), generator=generator)
    masks = channels.ones()
    eps = 0.4
    start = (torch.rand(2, len(masks), generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2 - 1) * eps
    found = torch.stack(worst_noise(channels, masks, x, y, eps, 1, torch.Generator().manual_seed(5))).double()
    assert float(found.abs().max()) <= 2 * eps + 1e-6

    def loss(noise: torch.Tensor) -> float:
        return float(F.cross_entropy(channels(x, masks + noise[0], 1 + noise[1]), y))

    moved = (found - start.double()) / eps
    step = 1e-5
    for row, column in ((0, 0), (0, 17), (1, 3), (1, 40)):
        probe = torch.zeros_like(found)
        probe[row, column] = step
        slope = (loss(start.double() + probe) - loss(start.double() - probe)) / (2 * step)
        assert float(moved[row, column]) == pytest.approx((slope > 0) - (slope < 0), abs=1e-5)
    assert loss(found) > loss(start.double())


def test_the_threshold_is_measured_on_what_will_be_pruned() -> None:
    """Without its beta channel 1 takes the decision with it; without its gamma alone it does not."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].weight[1] = 0.0
        model[1].bias[1] = 1.0
        model[3].weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, -5.0]]))
        model[3].bias.copy_(torch.tensor([0.0, 5.0]))
    model.eval()
    x = torch.tensor([-1.0, 1.0]).repeat(10).view(-1, 1, 1, 1)
    held = DefenderData(x, (x.flatten() > 0).long(), None)
    channels = NormChannels(model, layer_graph(model), "test")
    masks = torch.tensor([0.9, 0.3])
    assert channels.choose_threshold(masks, held, 0.05, beta="keep") == 0.85
    assert channels.choose_threshold(masks, held, 0.05, beta="zero") == 0.25
    with pytest.raises(MethodError, match="classifies none of 20 held-out images correctly"):
        wrong = DefenderData(x, (x.flatten() < 0).long(), None)
        channels.choose_threshold(masks, wrong, 0.05, beta="keep")


class Gated(nn.Module):
    """A hidden norm, one behind a sigmoid that multiplies, and one whose channels are the answers."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("hidden", "gate", "answer"):
            self.add_module(f"{name}_conv", nn.Conv2d(3 if name == "hidden" else 6, 6, 3, padding=1))
            self.add_module(name, nn.BatchNorm2d(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(self.hidden_conv(x)).relu()
        x = x * self.gate(self.gate_conv(x)).sigmoid()
        return self.answer(self.answer_conv(x)).mean((2, 3))


@pytest.mark.parametrize(
    "defence", [BNP(u=0.0), EP(u=0.0), ANP(iterations=2, threshold=1.0, holdout=0), RNP(threshold=1.0, holdout=0)]
)
def test_norms_of_gates_and_answers_are_left_alone_and_said(defence: DataBased) -> None:
    torch.manual_seed(0)
    model = Gated().eval()
    x, y = torch.randn(60, 3, 8, 8), torch.arange(60) % 6
    outcome = defence(model, x, y, generator=torch.Generator().manual_seed(0))
    (layer,) = outcome.report.layers
    assert layer.path == "hidden"
    assert layer.pruned
    left = {remark.path: remark.reason for remark in outcome.report.left_alone}
    assert "answers" in left["answer"]
    assert "zero would not switch it off" in left["gate"]
    for name in ("gate", "answer"):
        assert torch.equal(outcome.model.get_submodule(name).weight, model.get_submodule(name).weight)


def test_a_network_whose_norms_are_all_gates_or_answers_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(MethodError, match=r"hidden BatchNorm channels.* 1: its channels are the network's answers"):
        NormChannels(model, layer_graph(model), "test")
