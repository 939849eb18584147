"""A norm behind an activation: it is found, and a pruned channel is off there, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.channel_scores import channel_lipschitz
from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.graph import layer_graph

IMAGE = torch.zeros(2, 3, 8, 8)
BOTH = pytest.mark.parametrize("example", [None, IMAGE], ids=["fx", "export"])
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Convolutions a, b of 8 channels, norms n, m, o, Linears f, g, and a forward pass over them."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.n, self.m, self.o = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)
        self.f, self.g = nn.Linear(8, 4), nn.Linear(8, 8)
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
    "a Linear along the rows": lambda s, x: s.b(s.n(s.g(s.a(x)).movedim(3, 1).movedim(1, 3).relu())),
    "without gamma and beta": lambda s, x: s.b(s.o(s.a(x).relu())),
    "a sum with something else": lambda s, x: s.b(s.n(s.a(x).relu() + x.mean(1, keepdim=True))),
}


@BOTH
@pytest.mark.parametrize("case", FOUND)
def test_it_is_found(case: str, example: Tensor | None) -> None:
    graph = layer_graph(Net(FOUND[case]), example)
    assert graph["a"].behind == ("n",)
    assert graph["a"].norm is None
    assert graph["a"].note == "a norm stands behind its activation, and is part of its score"
    assert graph["b"].behind == ()
    assert graph.unpaired_norms == ()


@BOTH
def test_one_behind_the_layers_own_norm_and_one_behind_that(example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: s.b(s.n(s.a(x).relu()).relu())), example)
    assert graph["a"].behind == ("n",)
    graph = layer_graph(Net(lambda s, x: s.b(s.m(F.elu(s.n(s.a(x)))))), example)
    assert (graph["a"].norm, graph["a"].behind) == ("n", ("m",))
    graph = layer_graph(Net(lambda s, x: s.b(s.m(F.elu(s.n(F.elu(s.a(x))))))), example)
    assert (graph["a"].norm, graph["a"].behind) == (None, ("n", "m"))


@BOTH
@pytest.mark.parametrize("case", NOT_FOUND)
def test_it_is_not_taken_for_one(case: str, example: Tensor | None) -> None:
    assert all(layer.behind == () for layer in layer_graph(Net(NOT_FOUND[case]), example).layers)


@BOTH
def test_a_linear_has_none_since_its_channels_may_be_another_axis(example: Tensor | None) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4))
    graph = layer_graph(net, None if example is None else torch.zeros(2, 8, 8))
    assert graph["0"].behind == ()


class Root(nn.BatchNorm2d):
    """The network is a norm itself, whose path is empty, and normalises a sum."""

    def __init__(self) -> None:
        super().__init__(8)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu() + x.mean(1, keepdim=True)
        h = F.batch_norm(h, self.running_mean, self.running_var, self.weight, self.bias)
        return self.b(h).relu().mean((2, 3))[:, :4]


def test_a_norm_with_an_empty_path_is_nobodys() -> None:
    assert all(layer.behind == () for layer in layer_graph(Root()).layers)


def trained(forward: Forward) -> Net:
    """Channel 5 of the first norm is an outlier, and the norm's statistics are those of random images."""
    torch.manual_seed(0)
    net = Net(forward)
    with torch.no_grad():
        net.n.weight.uniform_(0.5, 2)
        net.n.weight[5] *= 8
        net.n.bias.uniform_(-1, 1)
        net.m.weight.uniform_(0.5, 2)
        net.m.bias.uniform_(-1, 1)
    net.n.momentum = net.m.momentum = None  # the mean of all batches
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


def test_it_is_off_behind_all_of_them() -> None:
    net, seen = trained(lambda s, x: s.b(s.m(F.elu(s.n(F.elu(s.a(x)))) - 0.1).relu()).relu()), list[Tensor]()
    assert layer_graph(net)["a"].behind == ("n", "m")
    with torch.no_grad():
        net.m.weight[5] *= 8  # which undoes what the first norm did
    model = LPP(upper=2.0, fc_weights=0)(net).model
    model.m.register_forward_hook(lambda _norm, _given, out: seen.append(out))
    model(torch.randn(4, 3, 8, 8))
    assert torch.count_nonzero(seen[0][:, 5]) == 0


def test_its_factor_is_part_of_the_score() -> None:
    """By hand: the length of the filter times |gamma| / sqrt(var + eps), of one norm and of two."""
    for case, norms in ((FOUND["ELU"], "n"), (lambda s, x: s.b(s.m(F.elu(s.n(F.elu(s.a(x)))))), "nm")):
        net = trained(case)
        expected = net.a.weight.flatten(1).norm(dim=1).double()
        for norm in (net.get_submodule(name) for name in norms):
            expected = expected * norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
        torch.testing.assert_close(channel_lipschitz(net)["a"], expected.detach(), rtol=1e-5, atol=0)
        alone = channel_lipschitz(net, factor="none")["a"]
        torch.testing.assert_close(alone, net.a.weight.flatten(1).norm(dim=1).double().detach(), rtol=1e-5, atol=0)


def test_near_outliers_are_shrunk_in_it_once() -> None:
    net = trained(FOUND["ELU"])
    method = LPP(upper=2.7, band=2.0, fc_weights=0)
    once = method(net).model
    assert torch.equal(once.a.weight, net.a.weight)
    assert float((once.n.weight / net.n.weight)[5].detach()) < 1
    before, after = (channel_lipschitz(one)["a"] for one in (net, once))
    assert after[5] < before[5]
    assert torch.equal(after[:5], before[:5])


def test_a_broken_channel_is_finite_again_behind_it() -> None:
    net = trained(FOUND["ELU"])
    with torch.no_grad():
        net.a.weight[5, 0, 0, 0] = torch.nan
        net.n.running_mean[5] = net.n.running_var[5] = torch.nan
    x = torch.randn(4, 3, 8, 8)
    assert not bool(torch.isfinite(net(x)).any())
    assert bool(torch.isfinite(LPP()(net).model(x)).all())


def test_it_is_undone_bit_for_bit() -> None:
    net = trained(FOUND["ELU"])
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    plan = LPP(upper=2.0).plan(net)
    plan.apply_(net)
    assert not torch.equal(net.n.weight, before["n.weight"])
    plan.undo(net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
