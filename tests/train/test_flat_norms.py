"""The adaptive attacker's penalty: the spread of what LPP scores, and that it can be trained away."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from unbackdoor.channel_scores import channel_lipschitz
from unbackdoor.errors import SettingError
from unbackdoor.graph import layer_graph
from unbackdoor.models import parse_arch
from unbackdoor.train.flat_norms import Flatness

Build = Callable[..., nn.Module]


def _spread(model: nn.Module) -> float:
    """Mean over the layers with a norm of Var / mean^2, from the scores that the defences see."""
    graph = layer_graph(model)
    scores = channel_lipschitz(model, graph=graph)
    spreads = [scores[layer.path].var(correction=0) / scores[layer.path].mean() ** 2
               for layer in graph.layers if layer.norm is not None]  # fmt: skip
    return float(torch.stack(spreads).mean())


@pytest.mark.parametrize("arch", ["resnet18:width=4", "preactresnet18:width=4", "vgg16_bn:width=4"])
def test_it_is_the_spread_of_the_scores(arch: str) -> None:
    model = parse_arch(arch).build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.running_var.uniform_(0.5, 2)
    assert float(Flatness(model, layer_graph(model))().detach()) == pytest.approx(_spread(model), rel=1e-4)
    assert float(Flatness(model, layer_graph(model), weight=3)().detach()) == pytest.approx(
        3 * _spread(model), rel=1e-4
    )


def test_by_hand() -> None:
    # Filters of lengths 1 and 3 in a layer whose norm is the identity (eps 0): mean 2, variance 1, so 1 / 4.
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2, eps=0), nn.Flatten(), nn.Linear(2, 2))
    model[0].weight.data.copy_(torch.tensor([1.0, -3.0]).view(2, 1, 1, 1))
    assert float(Flatness(model.eval(), layer_graph(model))().detach()) == pytest.approx(0.25)
    model[1].weight.data.copy_(torch.tensor([3.0, -1.0]))
    assert float(Flatness(model, layer_graph(model))().detach()) == pytest.approx(0)


def test_descending_it_flattens_the_norms(tiny_net: Build) -> None:
    model = tiny_net()
    penalty = Flatness(model, layer_graph(model))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = _spread(model)
    variances = model.bn1.running_var.clone()
    for _ in range(200):
        optimiser.zero_grad()
        penalty().backward()
        optimiser.step()
    assert _spread(model) < before / 50
    assert torch.equal(model.bn1.running_var, variances)  # held fixed
    assert model.fc.weight.grad is None  # no norm of its own


def test_it_follows_the_network_when_weights_are_loaded_or_moved(tiny_net: Build) -> None:
    model = tiny_net()
    penalty = Flatness(model, layer_graph(model))
    model.load_state_dict(tiny_net(seed=1).state_dict())
    model.to(memory_format=torch.channels_last)
    assert float(penalty().detach()) == pytest.approx(_spread(model), rel=1e-4)


def test_a_network_without_norms() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    with pytest.raises(SettingError, match="flat_norms: expected a network with a BatchNorm after a layer"):
        Flatness(model, layer_graph(model))


def test_its_text_tells_weights_apart(tiny_net: Build) -> None:
    model = tiny_net()
    texts = {repr(Flatness(model, layer_graph(model), weight=weight)) for weight in (1.0, 1.0, 2.0)}
    assert texts == {"Flatness(weight=1.0)", "Flatness(weight=2.0)"}
