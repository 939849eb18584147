"""What stimulated channels do to the answers, by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.stimulation import LEVEL, Pushes, _flips, push_leads, stimulate
from unbackdoor.graph import layer_graph
from unbackdoor.inputs import InputSpec

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


class Two(nn.Module):
    """A stem that does nothing, a convolution with a norm, one without, a hidden Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.dirac_(self.stem.weight)
        self.first, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.second, self.third = nn.Conv2d(4, 5, 1), nn.Linear(5, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(self.stem(x))))))
        return self.fc(torch.relu(self.third(x.mean((2, 3)))))


def two() -> Two:
    torch.manual_seed(0)
    return Two().eval().requires_grad_(False)


def test_flips_by_hand() -> None:
    before = torch.eye(3)[[0, 0, 1, 2]]  # answers 0, 0, 1, 2
    after = torch.eye(3)[torch.tensor([[1, 0, 1, 1], [2, 2, 2, 2]])]
    # channel 0: class 1 was not answered by three images, of which two are moved; the third image was 1 already
    assert _flips(before, after).tolist() == [
        pytest.approx([0, 2 / 3, 0]),
        pytest.approx([0, 0, 1]),
    ]


def test_a_channel_is_raised_to_its_level_and_no_further() -> None:
    """Behind a BatchNorm: beta + 3 |gamma|; where the map is above, it stays."""
    model = two()
    with torch.no_grad():
        model.norm.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        model.norm.weight.copy_(torch.tensor([1.0, -1.0, 0.5, 2.0]))
    seen = []
    handle = model.second.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].clone()))
    pixels = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    pixels[0] = 100.0  # far above every level
    network = OnPixels(model, SPEC, exact=True)
    stimulate(network, layer_graph(model, pixels), pixels)
    handle.remove()
    plain = next(x for x in seen if len(x) == 5)
    levels = torch.tensor([LEVEL, 1 + LEVEL, 2 + 0.5 * LEVEL, 3 + 2 * LEVEL])
    raised = next(x for x in seen if len(x) == 20)  # four channels times five images
    for channel in range(4):
        expected = plain.clone()
        expected[:, channel] = expected[:, channel].clamp_min(levels[channel])
        assert torch.allclose(raised[5 * channel : 5 * channel + 5], expected, atol=1e-5)


def test_each_layer_behind_the_first_third_once_and_its_push() -> None:
    """Of four hidden layers the stem is left out."""
    model = two()
    with torch.no_grad():  # class 1 is spoken for by channel 2 alone, through all layers
        for layer in (model.second, model.third, model.fc):
            layer.weight.mul_(0.01)
        model.second.weight[3, 2] = 10
        model.third.weight[4, 3] = 10
        model.fc.weight[1, 4] = 10
        model.fc.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
        model.norm.bias.fill_(-5)
        model.norm.weight.fill_(3)
    pixels = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)) / 10
    told: list[tuple[int, int]] = []
    found = stimulate(
        OnPixels(model, SPEC),
        layer_graph(model, pixels),
        pixels,
        progress=lambda done, total: told.append((done, total)),
    )
    assert [(push.path, push.layer, len(push.flips)) for push in found] == [
        ("norm", "first", 4),
        ("second", "second", 5),
        ("third", "third", 6),
    ]
    assert found[0].flips[:, 1].tolist() == [0, 0, 1, 0]
    assert found[0].change[2, 1] > 1
    assert told[-1] == (15, 15)


def test_the_network_is_left_as_it_was() -> None:
    model = two()
    pixels = torch.rand(4, 3, 8, 8)
    before = model(pixels)
    first = stimulate(OnPixels(model, SPEC), layer_graph(model, pixels), pixels)
    again = stimulate(OnPixels(model, SPEC), layer_graph(model, pixels), pixels)
    assert torch.equal(model(pixels), before)
    assert not model.norm._forward_hooks
    assert all(
        torch.equal(a.flips, b.flips) and torch.equal(a.change, b.change) for a, b in zip(first, again, strict=True)
    )


def test_a_lead_is_counted_in_factors_of_two() -> None:
    flips = torch.tensor([[1.0, 0.0, 0.5, 0.8], [1.0, 0.0, 0.0, 0.6], [1.0, 0.0, 0.0, 0.0]])
    layers = [Pushes("", "", flips, torch.zeros(3, 4))]  # pushes of 3, 0, .25 and 1; 1 is added to each
    leads = push_leads(layers)
    assert leads == pytest.approx([1.0, -2.0, math.log2(1.25 / 4), -1.0])
