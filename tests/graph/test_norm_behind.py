"""A norm behind an activation: it is found, and a pruned channel is off there, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.graph import layer_graph

IMAGE = torch.zeros(2, 3, 8, 8)
BOTH = pytest.mark.parametrize("example", [None, IMAGE], ids=["fx", "export"])
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Convolutions a, b of 8 channels, a norm n, a Linear f, and a forward pass over them."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b, self.n = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.f = nn.Linear(8, 4)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.run(self, x).mean((2, 3)))


FOUND: dict[str, Forward] = {
    "ReLU": lambda s, x: s.b(s.n(s.a(x).relu())),
    "ELU": lambda s, x: s.b(s.n(F.elu(s.a(x)))),
    "SiLU written out": lambda s, x: s.b(s.n((h := s.a(x)) * h.sigmoid())),
    "pooled": lambda s, x: s.b(s.n(F.max_pool2d(s.a(x).relu(), 2))),
    "dropout": lambda s, x: s.b(s.n(F.dropout(s.a(x).relu(), 0.5, s.training))),
    "called twice": lambda s, x: s.b(s.n(s.a(x).relu()) + s.n(s.a(2 * x).relu())),
}

NOT_FOUND: dict[str, Forward] = {
    "the norm is the layer's own": lambda s, x: s.b(s.n(s.a(x)).relu()),
    "another layer reads it, too": lambda s, x: s.b(s.n(h := s.a(x).relu())) + s.b(h),
    "a sum reads it, too": lambda s, x: s.b(s.n((h := s.a(x)).relu()) + h),
    "the norm also reads another": lambda s, x: s.b(s.n((h := s.a(x)).relu()) + s.n(s.b(h.relu()).relu())),
    "channels change places": lambda s, x: s.b(s.n(s.a(x).relu().flip(1))),
    "along the channels": lambda s, x: s.b(s.n(s.a(x).softmax(1))),
    "a sum with something else": lambda s, x: s.b(s.n(s.a(x).relu() + x.mean(1, keepdim=True))),
}


@BOTH
@pytest.mark.parametrize("case", FOUND)
def test_it_is_found(case: str, example: Tensor | None) -> None:
    graph = layer_graph(Net(FOUND[case]), example)
    assert graph["a"].behind == "n"
    assert graph["a"].norm is None
    assert "its norm (n)" in graph["a"].note
    assert graph["b"].behind is None


@BOTH
@pytest.mark.parametrize("case", NOT_FOUND)
def test_it_is_not_taken_for_one(case: str, example: Tensor | None) -> None:
    assert all(layer.behind is None for layer in layer_graph(Net(NOT_FOUND[case]), example).layers)


def trained(forward: Forward) -> Net:
    """Channel 5 of the first layer is an outlier, and the norm's statistics are those of random images."""
    torch.manual_seed(0)
    net = Net(forward)
    with torch.no_grad():
        net.a.weight[5] *= 8
        net.n.weight.uniform_(0.5, 2)
        net.n.bias.uniform_(-1, 1)
    net.n.momentum = None  # the mean of all batches
    net(torch.randn(64, 3, 8, 8))
    return net.eval()


@pytest.mark.parametrize("method", [LPP(upper=2.0), CLP(u=2.0)], ids=["lpp", "clp"])
@pytest.mark.parametrize("case", ["ReLU", "ELU", "SiLU written out", "pooled"])
def test_a_pruned_channel_is_off_behind_it(case: str, method: LPP | CLP) -> None:
    net, seen = trained(FOUND[case]), list[Tensor]()
    outcome = method(net)
    for one in (net, outcome.model):
        handle = one.n.register_forward_hook(lambda _norm, _given, out: seen.append(out))
        one(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
        handle.remove()
    before, after = seen
    assert 5 in next(layer for layer in outcome.report.layers if layer.path == "a").pruned
    assert before[:, 5].abs().max().item() > 0.5
    assert torch.count_nonzero(after[:, 5]) == 0


def test_near_outliers_are_shrunk_in_the_norm_and_nothing_shifts_at_its_mean() -> None:
    net = trained(FOUND["ELU"])
    shrunk = LPP(upper=2.7, band=2.0, fc_weights=0)(net).model
    changed = (shrunk.n.weight / net.n.weight).detach()
    assert float(changed[5]) < 1
    assert torch.equal(shrunk.a.weight, net.a.weight)
    assert torch.equal(shrunk.n.bias, net.n.bias)


def test_it_is_undone_bit_for_bit() -> None:
    net = trained(FOUND["ELU"])
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    plan = LPP(upper=2.0).plan(net)
    plan.apply_(net)
    assert not torch.equal(net.n.weight, before["n.weight"])
    plan.undo(net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
