"""Triggers on channels: by hand, and on networks with a planted way into a class."""

import math

import pytest
import torch
from torch import Tensor, nn

from planted_networks import CLASSES, PLAIN, Deaf, Stripes, Toy
from unbackdoor.defender.channel_triggers import ChannelTrigger, channel_triggers, leads
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.stimulation import Place
from unbackdoor.detectors.data_free.channels import Channels
from unbackdoor.errors import MethodError
from unbackdoor.findings import Detection
from unbackdoor.graph import layer_graph
from unbackdoor.inputs import InputSpec


class Shades(nn.Module):
    """Bright images are of class 0, dark ones of class 1, and none is of class 2; `copies` channels speak for each.

    Those of class 2 fire on no image; how loud they speak is `planted`.
    """

    def __init__(self, copies: int = 1, planted: float = 1.0) -> None:
        super().__init__()
        self.hidden, self.norm = nn.Conv2d(1, 3 * copies, 1), nn.BatchNorm2d(3 * copies)
        self.last = nn.Linear(3 * copies, 3)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([16.0, -16.0, 0.0]).repeat(copies).view(-1, 1, 1, 1))
            self.hidden.bias.copy_(torch.tensor([-8.0, 8.0, 0.0]).repeat(copies))
            self.last.weight.copy_(torch.eye(3).repeat(1, copies) * torch.tensor([[1.0], [1.0], [planted]]) / copies)
            self.last.bias.copy_(torch.tensor([0.0, 0.0, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.hidden(x))).mean((2, 3)))


def found(model: nn.Module, shape: tuple[int, ...] = (1, 8, 8), **more: float) -> Detection:
    method = Channels(surrogates=24, **more)
    return method(
        model.eval(), example=torch.zeros(2, *shape), normalisation=PLAIN, generator=torch.Generator().manual_seed(0)
    )


def test_leads_by_hand() -> None:
    assert leads([2, 8, 4]) == pytest.approx([1, -2, -1])
    assert leads([4, 4, 8]) == pytest.approx([0, 0, -1])
    # None was found for the last two: they count as twice the largest, which is 8.
    assert leads([4, math.inf, math.inf]) == pytest.approx([1, -1, -1])
    assert leads([math.inf, math.inf]) == pytest.approx([0, 0])
    assert leads([0, 1]) == pytest.approx([math.log2(1 / 1e-3), -math.log2(1 / 1e-3)])


def test_channels_that_speak_for_a_class_are_found() -> None:
    honest, planted = found(Shades()), found(Shades(planted=8.0))
    assert 2 not in honest.suspicious
    assert planted.suspicious == (2,)
    assert planted.classes[2].values["size"] < honest.classes[2].values["size"] / 2
    assert planted.to_json() == found(Shades(planted=8.0)).to_json()
    assert planted.images == 0


def sizes(copies: int) -> list[float]:
    model = Shades(copies).eval().requires_grad_(False)
    spec = InputSpec(shape=(1, 2, 2), mean=(0.0,), std=(1.0,))
    images = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    answers = model(images).argmax(1)
    graph = layer_graph(model, images[:2])
    rng = torch.Generator().manual_seed(0)
    triggers = channel_triggers(OnPixels(model, spec), graph, images, answers, range(3), rng)
    assert [trigger.label for trigger in triggers] == [0, 1, 2]
    return [trigger.size for trigger in triggers]


def test_sizes_grow_with_the_width_and_leads_do_not() -> None:
    narrow, wide = sizes(1), sizes(4)
    assert wide == pytest.approx([4 * size for size in narrow], rel=0.2)
    assert leads(wide) == pytest.approx(leads(narrow), abs=0.3)


def test_only_some_images_are_led_and_pruned_channels_do_not_fire() -> None:
    model, images = Toy(channel=9.0).eval(), torch.rand(4, 3, 8, 8)
    places = [Place("norm2", "second", 12, 1), Place("norm3", "third", 52, 1)]
    added = [torch.zeros(12), torch.zeros(52)]
    added[1][20] = 6.0
    trigger = ChannelTrigger(4, places, added, 3.0)
    with trigger.only_from(model, 2):
        moved = model(images)
    assert torch.equal(moved[:2], model(images)[:2])
    # The channel is at -3: it comes to 3 behind the ReLU, times 9 for class 4 alone.
    expected = model(images)[2:] + 27 * nn.functional.one_hot(torch.tensor(4), CLASSES)
    assert torch.allclose(moved[2:], expected, atol=1e-4)
    assert str(trigger) == "channel 20 of third alone, of size 3"
    with torch.no_grad():
        model.norm3.weight[20] = model.norm3.bias[20] = 0
    with trigger.only_from(model, 0):
        assert torch.equal(model(images), model(images))


def test_what_they_cannot_look_at() -> None:
    with pytest.raises(MethodError, match="channels: expected hidden layers that are modules"):
        found(nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)), (3, 8, 8))
    with pytest.raises(MethodError, match="answers class 0 to every generated image"):
        found(Deaf(), (3, 8, 8))
    with pytest.raises(MethodError, match="channels: expected hidden layers"):
        found(Stripes(), (3, 8, 8))
