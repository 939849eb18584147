"""Networks small enough that the answer can be seen: every odd way to put a layer and a norm together."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from unbackdoor.channel_scores import channel_lipschitz
from unbackdoor.errors import GraphError
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph import layer_graph


class Net(nn.Module):
    """Named modules and a forward pass over them, so that a test shows both."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def conv(c_in: int = 3, c_out: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1, **options)


def bn(channels: int = 4, **options: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, **options)


def pairs(model: nn.Module, example: Any = None) -> dict[str, str]:
    return layer_graph(model, example).pairs


def refused(graph: LayerGraph) -> dict[str, str]:
    return {remark.path: remark.reason for remark in graph.uncovered}


def paths(graph: LayerGraph) -> list[str]:
    return [layer.path for layer in graph.layers]


IMAGE = torch.zeros(2, 3, 8, 8)
BOTH = pytest.mark.parametrize("example", [None, IMAGE], ids=["fx", "export"])


# One layer, one norm, and what comes between or beside them.


@BOTH
def test_a_convolution_and_its_norm(example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: s.n(s.c(x)).relu(), c=conv(), n=bn()), example)
    assert graph.pairs == {"c": "n"}
    assert graph["c"].rule == ("fx" if example is None else "export")
    assert (graph.unpaired_norms, graph.uncovered, graph.classifier) == ((), (), None)


@BOTH
@pytest.mark.parametrize("between", [nn.Identity(), nn.Dropout2d(0.5), nn.Dropout(0.1)], ids=lambda m: type(m).__name__)
def test_what_does_nothing_in_eval_mode_is_looked_through(between: nn.Module, example: Tensor | None) -> None:
    assert pairs(Net(lambda s, x: s.n(s.b(s.c(x))), c=conv(), b=between, n=bn()), example) == {"c": "n"}


@BOTH
@pytest.mark.parametrize(
    "between",
    [
        lambda x: x.relu(),
        lambda x: F.relu(x, inplace=True),
        lambda x: x.relu_(),
        lambda x: x + 1,
        lambda x: F.max_pool2d(x, 2),
        lambda x: x.transpose(2, 3),
        lambda x: torch.cat([x, x]),
    ],
    ids=["relu", "in-place function", "in-place method", "sum", "pooling", "transpose", "concatenation"],
)
def test_anything_else_between_them_parts_them(between: Callable[[Tensor], Tensor], example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: s.n(between(s.c(x))), c=conv(), n=bn()), example)
    assert graph.pairs == {}
    assert graph.unpaired_norms == ("n",)
    assert paths(graph) == ["c"]


def _change_in_place(s: Net, x: Tensor) -> Tensor:
    y = s.c(x)
    y.relu_()
    return s.n(y)


@BOTH
def test_a_result_that_is_changed_in_place_first(example: Tensor | None) -> None:
    assert pairs(Net(_change_in_place, c=conv(), n=bn()), example) == {}


@BOTH
def test_an_in_place_relu_behind_the_norm(example: Tensor | None) -> None:
    model = Net(lambda s, x: s.d(s.r(s.n(s.c(x)))), c=conv(), n=bn(), r=nn.ReLU(inplace=True), d=conv(4))
    assert pairs(model, example) == {"c": "n"}


@BOTH
@pytest.mark.parametrize(
    "reader",
    [lambda y: y.mean(), lambda y: y[:, :1], lambda y: y.relu()],
    ids=["mean", "slice", "relu"],
)
def test_a_second_reader(reader: Callable[[Tensor], Tensor], example: Tensor | None) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.c(x)
        return s.n(y) + reader(y)

    graph = layer_graph(Net(forward, c=conv(), n=bn()), example)
    assert graph.pairs == {}
    assert "not only its norm" in graph["c"].note


@BOTH
def test_a_result_that_is_also_an_output(example: Tensor | None) -> None:
    def forward(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        y = s.c(x)
        return y, s.n(y)

    assert pairs(Net(forward, c=conv(), n=bn()), example) == {}


@BOTH
@pytest.mark.parametrize(
    "shapes",
    [
        lambda y, n: n.reshape(y.shape),
        lambda y, n: n.view_as(y),
        lambda y, n: n + torch.zeros_like(y),
        lambda y, n: n * y.size(1) * y.ndim,
        lambda y, n: n.to(y.dtype),
        lambda y, n: n + y.new_zeros(1),
    ],
    ids=["shape", "view_as", "zeros_like", "size", "dtype", "new_zeros"],
)
def test_reading_a_shape_is_no_reading(shapes: Callable[[Tensor, Tensor], Tensor], example: Tensor | None) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.c(x)
        return shapes(y, s.n(y))

    assert pairs(Net(forward, c=conv(), n=bn()), example) == {"c": "n"}


@BOTH
def test_a_convolution_without_a_norm_beside_one_with(example: Tensor | None) -> None:
    model = Net(lambda s, x: s.n(s.c(x)) + s.skip(x), c=conv(), n=bn(), skip=conv())
    graph = layer_graph(model, example)
    assert graph.pairs == {"c": "n"}
    assert graph["skip"].norm is None
    assert graph["skip"].note == ""


# Shared modules and tied weights.


@BOTH
def test_one_pair_called_twice(example: Tensor | None) -> None:
    model = Net(lambda s, x: s.n(s.c(s.n(s.c(x)))), c=conv(3, 3), n=bn(3))
    assert pairs(model, example) == {"c": "n"}


@BOTH
def test_one_convolution_into_two_norms(example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: s.m(s.c(x)) + s.n(s.c(x)), c=conv(), m=bn(), n=bn()), example)
    assert graph.pairs == {}
    assert "only norms read it" in refused(graph)["c"]
    assert graph.unpaired_norms == ("m", "n")


@BOTH
def test_two_convolutions_into_one_norm(example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: s.n(s.c(x)) + s.n(s.d(x)), c=conv(), d=conv(), n=bn()), example)
    assert graph.pairs == {}
    assert sorted(refused(graph)) == ["c", "d"]


@BOTH
def test_a_norm_that_also_normalises_a_sum(example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: s.n(s.n(s.c(x)) + 1), c=conv(), n=bn()), example)
    assert graph.pairs == {}
    assert "also normalise other layers" in refused(graph)["c"]


@BOTH
def test_one_module_under_two_names_is_one_layer(example: Tensor | None) -> None:
    shared = conv(3, 3)
    graph = layer_graph(Net(lambda s, x: s.n(s.b(s.a(x))), a=shared, b=shared, n=bn(3)), example)
    assert len(graph.layers) == 1
    assert graph.aside == ()  # the other name is no module that is never called
    assert not graph.layers[0].tied
    assert graph.pairs == {}  # one of its results goes to itself


@BOTH
def test_tied_weights_are_said(example: Tensor | None) -> None:
    model = Net(lambda s, x: s.n(s.d(s.c(x))), c=conv(3, 3, bias=False), d=conv(3, 3, bias=False), n=bn(3))
    model.d.weight = model.c.weight
    graph = layer_graph(model, example)
    assert [(layer.path, layer.tied) for layer in graph.layers] == [("c", True), ("d", True)]
    assert graph.pairs == {"d": "n"}
    assert graph.aliases["c.weight"] == ("d.weight",)


# Kinds of norms.


@BOTH
def test_a_norm_without_running_statistics_depends_on_the_batch(example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: s.n(s.c(x)), c=conv(), n=bn(track_running_stats=False)), example)
    assert (graph.pairs, graph.norms) == ({}, {})
    assert "running statistics" in graph["c"].note


@BOTH
def test_a_norm_without_affine_parameters_is_a_norm(example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: s.n(s.c(x)), c=conv(), n=bn(affine=False, eps=0.5)), example)
    assert graph.pairs == {"c": "n"}
    assert (graph.norms["n"].weight, graph.norms["n"].bias, graph.norms["n"].eps) == (None, None, 0.5)


@BOTH
def test_a_synchronised_norm(example: Tensor | None) -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Net(lambda s, x: s.n(s.c(x)), c=conv(), n=bn()))
    assert pairs(model, example) == {"c": "n"}


@BOTH
def test_torchvisions_frozen_norm(example: Tensor | None) -> None:
    ops = pytest.importorskip("torchvision.ops")
    frozen = ops.FrozenBatchNorm2d(4)
    model = Net(lambda s, x: s.d(s.n(s.c(x)).relu()), c=conv(), n=frozen, d=conv(4))
    graph = layer_graph(model, example)
    assert graph.pairs == {"c": "n"}
    assert graph["d"].norm is None
    assert graph.uncovered == ()


@BOTH
@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm(8)], ids=lambda m: type(m).__name__
)
def test_a_norm_whose_factor_depends_on_the_input(norm: nn.Module, example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: s.n(s.c(x)), c=conv(), n=norm), example)
    assert (graph.pairs, graph.norms, graph.unpaired_norms) == ({}, {}, ())
    assert "the score cannot include" in graph["c"].note


@BOTH
def test_a_subclass_of_batch_norm_with_an_activation(example: Tensor | None) -> None:
    class Active(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    assert pairs(Net(lambda s, x: s.d(s.n(s.c(x))), c=conv(), n=Active(4), d=conv(4)), example) == {"c": "n"}


@BOTH
def test_a_subclass_of_batch_norm_with_another_factor(example: Tensor | None) -> None:
    class Shifted(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.running_mean, self.running_var, 1 + self.weight, self.bias, False, 0, self.eps)

    graph = layer_graph(Net(lambda s, x: s.n(s.c(x)), c=conv(), n=Shifted(4)), example)
    assert graph.pairs == {}
    assert "computed during the forward pass" in refused(graph)["n"]
    assert "which the score cannot include" in graph["c"].note


# Kinds of layers.


@BOTH
@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 8)),
        (nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), (2, 3, 8, 8)),
        (nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), (2, 3, 8, 8, 8)),
        (nn.ConvTranspose1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 8)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 8, 8)),
        (nn.ConvTranspose3d(3, 4, 3), nn.BatchNorm3d(4), (2, 3, 4, 4, 4)),
        (nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), (2, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4), (2, 3, 8, 8)),
        (nn.Linear(5, 4), nn.BatchNorm1d(4), (2, 5)),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_every_kind_of_layer(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...], example: Tensor | None) -> None:
    model = Net(lambda s, x: s.n(s.l(x)), l=layer, n=norm)
    given = None if example is None else torch.zeros(shape)
    graph = layer_graph(model, given)
    assert graph.pairs == {"l": "n"}
    (found,) = graph.layers
    assert found.out_channels == graph.norms["n"].channels
    assert found.transposed == ("Transpose" in type(layer).__name__)
    assert found.groups == getattr(layer, "groups", 1)
    scale_and_compare(model, graph, torch.randn(shape))


def scale_and_compare(model: nn.Module, graph: LayerGraph, x: Tensor) -> None:
    """What a pair means: scaling a channel of the layer is undone by scaling the norm's statistics."""
    model = copy.deepcopy(model).double().eval()
    x = x.double()
    before = model(x)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for layer in graph.layers:
            norm = graph.norms[layer.norm or ""]
            a = 1 + torch.rand(layer.out_channels, dtype=torch.float64)
            weight = tensors[layer.weight]
            if layer.transposed:
                grouped = weight.view(layer.groups, -1, *weight.shape[1:])
                grouped *= a.view(layer.groups, 1, -1, *(1,) * (weight.ndim - 2))
            else:
                weight *= a.view(-1, *(1,) * (weight.ndim - 1))
            if layer.bias:
                tensors[layer.bias] *= a
            tensors[norm.mean] *= a
            tensors[norm.var].copy_(a**2 * (tensors[norm.var] + norm.eps) - norm.eps)
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize(
    ("example", "found"),
    [(None, {"l": "n"}), (torch.zeros(2, 8), {"l": "n"}), (torch.zeros(2, 8, 8), {})],
    ids=["guessed", "(N, C)", "(N, L, C) with L = C"],
)
def test_a_norm_behind_a_linear_belongs_to_it_in_two_dimensions_only(example: Any, found: dict[str, str]) -> None:
    assert pairs(Net(lambda s, x: s.n(s.l(x)), l=nn.Linear(8, 8), n=nn.BatchNorm1d(8)), example) == found


@BOTH
def test_a_norm_over_positions_is_not_the_linears(example: Tensor | None) -> None:
    """8 x 8 pixels in rows: (N, 8, 8), so that the norm's 8 channels are rows and the Linear's are columns."""
    model = Net(lambda s, x: s.n(s.l(s.c(x)[:, 0])), c=conv(), l=nn.Linear(8, 8), n=nn.BatchNorm1d(8))
    graph = layer_graph(model, example if example is not None else None)
    if example is None:  # the sizes that are tried do not fit: then it is said, not guessed
        assert "give an example" in refused(graph)["l"]
    else:
        assert graph["l"].norm is None
    assert graph.pairs == {}


@BOTH
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_a_norm_of_images_behind_a_linear(kind: type[nn.Module], example: Tensor | None) -> None:
    model = Net(
        lambda s, x: s.n(s.l(s.p(s.c(x)))), c=conv(c_out=8), p=nn.AdaptiveAvgPool2d(8), l=nn.Linear(8, 8), n=kind(8)
    )
    graph = layer_graph(model, example)
    assert graph.pairs == {}
    assert "another axis" in graph["l"].note


@BOTH
def test_positions_merged_into_the_batch_before_the_norm(example: Tensor | None) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.l(s.c(x).flatten(2))  # (N, 4, 64) -> (N, 4, 5)
        return s.n(y.flatten(0, 1)).reshape_as(y)

    model = Net(forward, c=conv(), p=nn.AdaptiveAvgPool2d(8), l=nn.Linear(64, 5), n=nn.BatchNorm1d(5))
    model.run = lambda s, x: forward(s, s.p(x))
    graph = layer_graph(model, example)
    assert graph.pairs == {"l": "n"}


@BOTH
def test_channels_merged_into_the_batch_are_not_the_convolutions(example: Tensor | None) -> None:
    model = Net(lambda s, x: s.n(s.c(x).flatten(0, 1)), c=conv(c_out=8), n=nn.BatchNorm1d(8))
    assert pairs(model, example) == {}


def test_signals_merged_into_the_batch_are_not_the_convolutions() -> None:
    model = Net(lambda s, x: s.n(s.c(x).flatten(0, 1)), c=nn.Conv1d(3, 8, 1), n=nn.BatchNorm1d(8))
    for example in (None, torch.zeros(2, 3, 8)):
        assert pairs(model, example) == {}


@BOTH
def test_a_weight_used_forwards_and_backwards_is_refused(example: Tensor | None) -> None:
    model = Net(lambda s, x: F.conv_transpose2d(s.n(s.c(x)).relu(), s.c.weight), c=conv(), n=bn())
    graph = layer_graph(model, example)
    assert graph.layers == ()
    assert graph.classifier is None
    assert "also uses its weight" in refused(graph)["c"]


def test_the_functions_with_the_modules_tensors() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = F.conv2d(x, s.c.weight, s.c.bias, padding=1)
        return F.batch_norm(y, s.n.running_mean, s.n.running_var, s.n.weight, s.n.bias, eps=0.25)

    model = Net(forward, c=conv(), n=bn())
    for example in (None, IMAGE):
        graph = layer_graph(model, example)
        assert graph.pairs == {"c": "n"}
        assert graph.norms["n"].eps == 0.25
        assert graph["c"].weight == "c.weight"


@BOTH
def test_a_function_that_takes_the_batchs_statistics(example: Tensor | None) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return F.batch_norm(s.c(x), s.n.running_mean, s.n.running_var, s.n.weight, s.n.bias, True)

    assert pairs(Net(forward, c=conv(), n=bn()), example) == {}


@BOTH
def test_bare_parameters_are_layers_too(example: Tensor | None) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.n = bn()

        def forward(self, x: Tensor) -> Tensor:
            return self.n(F.conv2d(x, self.filters))

    graph = layer_graph(Bare(), example)
    assert graph.pairs == {"filters": "n"}
    assert graph["filters"].kind == "conv2d"


@BOTH
def test_a_standardised_weight_is_refused(example: Tensor | None) -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)

    graph = layer_graph(Net(lambda s, x: s.n(s.c(x)), c=Standardised(3, 4, 3), n=bn()), example)
    assert graph.layers == ()
    assert "computed during the forward pass" in refused(graph)["c"]


@BOTH
def test_a_computed_bias_leaves_the_weight_readable(example: Tensor | None) -> None:
    model = Net(lambda s, x: F.conv2d(x, s.c.weight, 2 * s.c.bias), c=conv())
    graph = layer_graph(model, example)
    assert paths(graph) == ["c"]
    assert graph.uncovered == ()
    assert graph["c"].parametrization == "other"  # a filter of zeros would leave the bias


@BOTH
def test_a_computed_bias_of_a_bare_filter_is_refused(example: Tensor | None) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.shift = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.filters, self.shift.exp())

    graph = layer_graph(Bare(), example)
    assert graph.layers == ()
    assert "bias is computed" in refused(graph)["filters"]


@BOTH
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_norm_of_computed_weight_is_refused(name: str, example: Tensor | None) -> None:
    model = Net(lambda s, x: s.n(s.c(x)), c=conv(), n=bn())
    parametrize.register_parametrization(model.n, name, nn.Softplus())
    graph = layer_graph(model, example)
    assert graph.pairs == {}
    assert "computed" in refused(graph)["n"]
    assert set(channel_lipschitz(model, graph=graph)) == {"c"}


def test_a_replaced_forward_pass_is_what_counts() -> None:
    model = Net(lambda s, x: s.n(s.c(x)), c=conv(), n=bn())
    model.forward = lambda x: model.n(model.c(x).relu())  # type: ignore[method-assign]
    assert pairs(model) == {}
    model = Net(lambda s, x: s.n(s.c(x)), c=conv(), n=bn())
    model.c.forward = lambda x: F.conv2d(x, model.c.weight.relu())  # type: ignore[method-assign]
    assert "computed" in refused(layer_graph(model))["c"]


def _old(function: Callable[..., nn.Module], layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(layer)


@BOTH
@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (parametrizations.weight_norm, "weight_norm"),
        (lambda m: _old(nn.utils.weight_norm, m), "weight_norm"),
        (parametrizations.spectral_norm, "other"),
        (lambda m: _old(nn.utils.spectral_norm, m), "other"),
        (parametrizations.orthogonal, "other"),
    ],
    ids=["weight_norm", "weight_norm (hook)", "spectral_norm", "spectral_norm (hook)", "orthogonal"],
)
def test_normed_weights(wrap: Callable[[nn.Module], nn.Module], kind: str, example: Tensor | None) -> None:
    torch.manual_seed(0)
    model = Net(lambda s, x: s.n(s.c(x)), c=wrap(conv()), n=bn()).eval()
    graph = layer_graph(model, example)
    assert graph.pairs == {"c": "n"}
    assert graph["c"].parametrization == kind
    model(IMAGE)
    expected = model.c.weight.detach().flatten(1).norm(dim=1).double()
    scores = channel_lipschitz(model, graph=graph, factor="none")["c"]
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)


@BOTH
def test_a_pruned_convolution(example: Tensor | None) -> None:
    from torch.nn.utils import prune

    model = Net(lambda s, x: s.n(s.c(x)), c=conv(), n=bn())
    prune.ln_structured(model.c, "weight", amount=2, n=2, dim=0)
    graph = layer_graph(model, example)
    assert graph.pairs == {"c": "n"}
    assert graph["c"].parametrization == "other"


@BOTH
def test_attention(example: Tensor | None) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.e(x).flatten(2).transpose(1, 2)
        return s.a(x, x, x, need_weights=False)[0]

    model = Net(forward, e=conv(c_out=8), a=nn.MultiheadAttention(8, 2, batch_first=True))
    graph = layer_graph(model, example)
    assert sorted(paths(graph)) == ["a.in_proj", "a.out_proj", "e"]
    assert (graph["a.in_proj"].blocks, graph["a.in_proj"].out_channels) == (3, 24)
    assert graph.uncovered == ()


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside"])
def test_a_transformer_encoder(inside: bool) -> None:
    """Alone, torch.export sees the pieces of each block; inside a network torch.fx sees one module a block."""
    layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)]
    model: nn.Module = nn.TransformerEncoder(layers[0], 2, enable_nested_tensor=False)
    if inside:
        model = Net(lambda s, x: s.layers[1](s.layers[0](x)), layers=nn.ModuleList(layers))
    graph = layer_graph(model)
    assert {layer.rule for layer in graph.layers} == {"fx" if inside else "export"}
    names = [f"layers.{i}.{part}" for i in range(2) for part in
             ("linear1", "linear2", "self_attn.in_proj", "self_attn.out_proj")]  # fmt: skip
    assert sorted(paths(graph)) == names
    assert graph.uncovered == ()


@pytest.mark.parametrize("example", [None, torch.zeros(2, 7, dtype=torch.long)], ids=["fx", "export"])
def test_recurrent_layers_are_refused(example: Tensor | None) -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.lstm = nn.LSTM(4, 5, batch_first=True)
            self.fc = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(self.embed(x))[0][:, -1])

    graph = layer_graph(Tagger(), example)
    assert paths(graph) == ["fc"]
    assert "not scored" in refused(graph)["lstm"]
    assert [remark.path for remark in graph.aside] == ["embed.weight"]
    assert graph.classifier == "fc"


def test_matrices_outside_every_layer_are_refused() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.table

    graph = layer_graph(Product())
    assert graph.layers == ()
    assert "table" in refused(graph)


@pytest.mark.parametrize("layer", [nn.LazyConv2d(4, 3), nn.LazyLinear(4)], ids=lambda m: type(m).__name__)
def test_lazy_layers_ask_for_a_batch_first(layer: nn.Module) -> None:
    with pytest.raises(GraphError, match="run one batch through the network first"):
        layer_graph(Net(lambda s, x: s.l(x), l=layer))


def test_a_lazy_norm_that_is_never_called() -> None:
    with pytest.raises(GraphError, match=r"n\.\w+: a lazy module"):
        layer_graph(Net(lambda s, x: s.c(x), c=conv(), n=nn.LazyBatchNorm2d()))


def test_quantised_layers_are_refused() -> None:
    quantised = torch.ao.nn.quantized.dynamic.Linear(8, 4)
    graph = layer_graph(Net(lambda s, x: s.q(s.l(x)), l=nn.Linear(3, 8), q=quantised))
    assert paths(graph) == ["l"]
    assert "not scored" in refused(graph)["q"]


def test_torchscript_is_refused_whole_or_in_part() -> None:
    inner = torch.jit.script(nn.Sequential(conv(4, 4), bn()).eval())
    graph = layer_graph(inner)
    assert graph.layers == ()
    assert sorted(refused(graph)) == ["0", "1"]
    graph = layer_graph(Net(lambda s, x: s.s(s.n(s.c(x))), c=conv(), n=bn(), s=inner))
    assert graph.pairs == {"c": "n"}
    assert sorted(refused(graph)) == ["s.0", "s.1"]


def test_what_is_no_module_is_an_error() -> None:
    with pytest.raises(GraphError, match="expected a torch.nn.Module, got dict"):
        layer_graph({})  # type: ignore[arg-type]


# Wrappers.


def _block() -> nn.Module:
    return nn.Sequential(conv(), bn(), nn.ReLU())


def test_wrappers_are_seen_through_and_keep_their_prefix() -> None:
    assert pairs(nn.DataParallel(_block())) == {"module.0": "module.1"}
    assert pairs(torch.compile(_block())) == {"_orig_mod.0": "_orig_mod.1"}
    assert pairs(nn.DataParallel(torch.compile(_block()))) == {"module._orig_mod.0": "module._orig_mod.1"}
    assert pairs(nn.DataParallel(_block()), IMAGE) == {"module.0": "module.1"}
    assert pairs(torch.compile(_block()), IMAGE) == {"_orig_mod.0": "_orig_mod.1"}


def test_a_wrapper_inside() -> None:
    model = Net(lambda s, x: s.fc(s.b(x).mean((2, 3))), b=torch.compile(_block()), fc=nn.Linear(4, 2))
    graph = layer_graph(model)
    assert graph.pairs == {"b._orig_mod.0": "b._orig_mod.1"}
    assert graph["fc"].rule == "fx"


def test_a_module_that_compiled_itself() -> None:
    model = _block()
    model.compile()
    compiled = model._compiled_call_impl
    assert pairs(model) == {"0": "1"}
    assert model._compiled_call_impl is compiled


def test_averaged_weights() -> None:
    assert pairs(torch.optim.swa_utils.AveragedModel(_block())) == {"module.0": "module.1"}


# Forward passes that are hard to follow.


class Branching(nn.Module):
    """Looks at a value: no tracer can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(), bn()
        self.conv2, self.other = conv(4), bn()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        if x.sum() > 0:
            x = self.other(self.conv2(x))
        return self.fc(x.mean((2, 3)))


def test_control_flow_that_depends_on_data_falls_to_names_and_says_why() -> None:
    graph = layer_graph(Branching())
    assert graph.pairs == {"conv1": "bn1"}
    assert {layer.rule for layer in graph.layers} == {"names"}
    assert "could not be traced" in refused(graph)["conv2"]
    assert any("could not be traced" in remark.reason for remark in graph.aside)


def test_a_network_read_by_names_alone_never_scores_a_weight_that_a_forward_pass_computes() -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight * 2 if x.sum() > 0 else self.weight)

    graph = layer_graph(nn.Sequential(Own(3, 4, 3), conv(4), nn.Flatten()))
    assert paths(graph) == ["1"]
    assert "could not be traced" in refused(graph)["0"]


def test_control_flow_that_depends_on_shapes_falls_to_export() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.n(s.c(x))
        return x.flatten(1) if x.shape[2] > 4 else x

    graph = layer_graph(Net(forward, c=conv(), n=bn()))
    assert graph.pairs == {"c": "n"}
    assert graph["c"].rule == "export"


def test_export_needs_an_example_where_no_image_fits() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        if x.shape[2] == 40:
            return s.fc(s.bn1(s.conv1(x)).flatten(1))
        raise ValueError("wants 40 pixels")

    model = Net(forward, conv1=conv(), bn1=bn(), fc=nn.Linear(4 * 1600, 2))
    assert layer_graph(model)["conv1"].rule == "names"
    graph = layer_graph(model, torch.zeros(1, 3, 40, 40))
    assert graph["conv1"].rule == "export"
    assert graph.classifier == "fc"


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.n = conv(), bn()

    def forward(self, *, image: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        y = self.c(image)
        if mask is not None:
            y = y * mask
        return {"out": self.n(y)}


@pytest.mark.parametrize("example", [None, {"image": IMAGE}], ids=["fx", "export"])
def test_inputs_by_keyword_and_outputs_in_a_dictionary(example: Any) -> None:
    """A mask that a plain call leaves at None is None."""
    assert pairs(Named(), example) == {"c": "n"}


def test_a_switch_with_a_default() -> None:
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.n, self.fc = conv(), bn(), nn.Linear(4, 2)

        def forward(self, x: Tensor, features: bool = False) -> Tensor:
            x = self.n(self.c(x))
            return x if features else self.fc(x.mean((2, 3)))

    graph = layer_graph(Switch())
    assert graph["c"].rule == "fx"
    assert graph.classifier == "fc"


@BOTH
def test_a_layer_that_only_a_constant_enters(example: Tensor | None) -> None:
    model = Net(lambda s, x: s.c(x) + s.l(s.table).sum(), c=conv(), l=nn.Linear(2, 3))
    model.register_buffer("table", torch.ones(5, 2))
    assert sorted(paths(layer_graph(model, example))) == ["c", "l"]


@BOTH
def test_dead_branches_are_told(example: Tensor | None) -> None:
    model = Net(lambda s, x: s.n(s.c(x)), c=conv(), n=bn(), aux=conv(), aux_norm=bn())
    graph = layer_graph(model, example)
    assert paths(graph) == ["c"]
    assert {remark.path: remark.reason for remark in graph.aside} == {
        "aux": "never called in eval mode",
        "aux_norm": "never called in eval mode",
    }


def test_nothing_and_next_to_nothing() -> None:
    graph = layer_graph(nn.Sequential(nn.ReLU(), nn.Flatten()))
    assert (graph.layers, graph.norms, graph.uncovered, graph.aside) == ((), {}, (), ())
    graph = layer_graph(conv())
    assert paths(graph) == [""]
    assert graph.layers[0].weight == "weight"
    graph = layer_graph(bn())
    assert (graph.layers, graph.unpaired_norms) == ((), ("",))


# The model stays as it was.


class Remembering(nn.Module):
    """Counts its calls, keeps its features, and counts in a buffer."""

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__()
        self.c, self.n = conv(), bn()
        self.calls, self.broken = 0, broken
        self.last: Any = None
        self.seen: list[Any] = []
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count.add_(1)
        y = self.n(self.c(x))
        self.last = y
        self.seen.append(y)
        if self.broken:
            raise ValueError("broken")
        return y


@BOTH
@pytest.mark.parametrize("broken", [False, True], ids=["", "broken"])
def test_the_model_is_left_as_it_was(example: Tensor | None, broken: bool) -> None:
    model = Remembering(broken=broken).train()
    model.n.eval()
    calls: list[Any] = []
    handles = [model.register_forward_hook(lambda *a: calls.append(a)), model.c.register_forward_pre_hook(calls.append)]
    before = copy.deepcopy(model.state_dict())
    attributes = {name: {**vars(module)} for name, module in model.named_modules()}
    state = torch.get_rng_state()
    graph = layer_graph(model, example)
    assert graph.pairs == ({} if broken else {"c": "n"})
    assert (model.training, model.c.training, model.n.training) == (True, True, False)
    assert (model.calls, model.last, model.seen, calls) == (0, None, [], [])
    assert len(model._forward_hooks) == len(model.c._forward_pre_hooks) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name, module in model.named_modules():
        assert vars(module).keys() == attributes[name].keys()
        assert all(value is attributes[name][key] for key, value in vars(module).items())
    assert torch.equal(torch.get_rng_state(), state)
    for handle in handles:
        handle.remove()


@BOTH
def test_tensors_keep_their_identity_version_and_gradients(example: Tensor | None) -> None:
    model = Net(lambda s, x: s.n(s.c(x)), c=conv(), n=bn())
    held = {name: (id(t), t._version, t.requires_grad) for name, t in model.state_dict(keep_vars=True).items()}
    layer_graph(model, example)
    assert {n: (id(t), t._version, t.requires_grad) for n, t in model.state_dict(keep_vars=True).items()} == held
    assert all(p.grad is None for p in model.parameters())


def test_random_numbers_in_a_forward_pass_do_not_move_the_generator() -> None:
    model = Net(lambda s, x: s.c(x) + torch.rand(1), c=conv())
    state = torch.get_rng_state()
    layer_graph(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_network_gives_the_same_graph() -> None:
    model = Branching()
    assert layer_graph(model) == layer_graph(model)


# Which layer answers.


@pytest.mark.parametrize(
    ("model", "classifier", "outputs"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "2", ("2",)),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softmax(1)), "2", ("2",)),
        (nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), "2", ("2",)),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), None, ("0",)),
        (Net(lambda s, x: (s.a(x), s.b(x)), a=nn.Linear(3, 2), b=nn.Linear(3, 5)), None, ("a", "b")),
        (Net(lambda s, x: {"a": s.a(x), "b": s.b(x)}, a=nn.Linear(3, 2), b=nn.Linear(3, 5)), None, ("a", "b")),
        (Net(lambda s, x: (s.a(x) + s.b(x)) / 2, a=nn.Linear(3, 2), b=nn.Linear(3, 2)), None, ("a", "b")),
        (Net(lambda s, x: s.a(x) + s.b(x), a=conv(), b=conv()), None, ("a", "b")),
        (Net(lambda s, x: s.n(s.a(x)) + s.b(x), a=conv(), n=bn(), b=conv()), None, ("a", "b")),
        (Net(lambda s, x: (s.a(x), s.b(x)), a=conv(), b=conv()), None, ("a", "b")),
        (Net(lambda s, x: (s.n(s.a(x)), s.b(x)), a=conv(), n=bn(), b=nn.Linear(8, 2)), None, ("a", "b")),
    ],
    ids=[
        *("Linear", "softmax", "1x1", "ends in a norm", "tuple", "dict", "mean of heads", "sum of maps", "residual"),
        *("two maps", "two answers, one with a norm"),
    ],
)
def test_the_classifier(model: nn.Module, classifier: str | None, outputs: tuple[str, ...]) -> None:
    graph = layer_graph(model)
    assert graph.classifier == classifier
    assert graph.outputs == outputs


def test_a_module_with_hooks_is_told() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    model[0].register_forward_hook(lambda *_: None)
    (remark,) = layer_graph(model).aside
    assert (remark.path, remark.kind) == ("0", "Conv2d")
    assert "hooks" in remark.reason


def test_a_vector_that_multiplies_channels_is_said() -> None:
    """LayerScale: no score holds its factor."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = conv(), nn.GroupNorm(2, 4), nn.Linear(4, 2)
            self.gamma, self.temperature = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.norm(self.conv(x)).mean((2, 3)) * self.gamma * self.temperature)

    model = Scaled()
    (remark,) = layer_graph(model).aside
    assert remark.path == "gamma"
    assert "may multiply channels" in remark.reason
    before = layer_graph(model)
    with torch.no_grad():
        model.gamma[2] = 50.0  # trained: now it can hold what the scores miss, so it counts as not read
    after = layer_graph(model)
    assert after.uncovered == (*before.uncovered, remark)
    assert not after.aside
