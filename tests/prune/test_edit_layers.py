"""A pruned channel is zero for every input, a shrunk one keeps its value at the running mean; layer by layer kind."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from layer_zoo import KINDS, Net, filters_of, inputs, network, rescale
from unbackdoor.channel_scores import channel_lipschitz, scores_of
from unbackdoor.defences.data_free.lpp import outliers
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph import layer_graph
from unbackdoor.graph.tensors import Tensors
from unbackdoor.prune import Editor, Plan, Population, copy_model, eligible


def plan_for(model: nn.Module, *, scale: str = "gamma", graph: LayerGraph | None = None, **changed: object) -> Plan:
    """Upper cut at 2 standard deviations only: of eight channels the one far outlier goes."""
    limits = {"lower": -math.inf, "upper": 2.0, "band": 0.0, "shrink_to": "edge", "upscale": False}
    graph = graph or layer_graph(model)
    tensors = Tensors(model)
    editor = Editor(tensors, graph, scale)
    layers, not_covered, left_alone = eligible(tensors, graph, lambda _layer, _weight: None)
    scores = scores_of(tensors, layers, graph, norm="l2", factor="folded")
    found = outliers(Population(layers, scores, correction=0), **{**limits, **changed})
    selections = tuple(editor.layer(one) for one in found)
    edits = tuple(editor.edits)
    remarks = (*left_alone, *editor.left_alone)
    return Plan("test", {}, graph, selections, None, edits, tuple(not_covered), remarks)


def repaired(model: Net, plan: Plan) -> Net:
    copy = copy_model(model)
    plan.apply_(copy)
    return copy


def channel(out: Tensor, *channels: int) -> Tensor:
    return out[:, list(channels)]


OTHERS = [0, 1, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("scale", ["gamma", "weight"])
@pytest.mark.parametrize("norm", ["affine", "plain", "none"])
@pytest.mark.parametrize("name", KINDS)
def test_a_pruned_channel_is_zero_for_every_input(name: str, norm: str, scale: str) -> None:
    model = network(name, norm=norm != "none", affine=norm == "affine")
    x = inputs(name)
    before = model.features(x)
    plan = plan_for(model, scale=scale)
    (layer,) = plan.report().layers
    if not KINDS[name].weight_edits and norm != "affine":
        assert plan.edits == ()
        assert layer.pruned == ()
        if norm == "plain":
            assert layer.immutable == (2,)
            assert any("couples its channels" in remark.reason for remark in plan.left_alone)
        return
    assert layer.pruned == layer.pruned_high == (2,)
    after = repaired(model, plan).features(x)
    assert torch.count_nonzero(channel(before, 2)) > 0
    assert torch.count_nonzero(channel(after, 2)) == 0
    torch.testing.assert_close(channel(after, *OTHERS), channel(before, *OTHERS), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("norm", ["affine", "plain", "none"])
@pytest.mark.parametrize("name", ["linear", "conv2d", "conv2d with bias", "transposed grouped", "depthwise"])
def test_a_pruned_channel_is_zero_in_every_precision(name: str, norm: str, dtype: torch.dtype) -> None:
    model = network(name, norm=norm != "none", affine=norm == "affine", dtype=dtype)
    copy = repaired(model, plan_for(model))
    out = copy.features(inputs(name, dtype=dtype))
    assert torch.count_nonzero(channel(out, 2)) == 0
    assert torch.isfinite(out).all()
    assert {tensor.dtype for tensor in copy.parameters()} == {dtype}


def test_a_norm_with_gamma_and_no_beta_is_enough() -> None:
    model = network("conv2d with bias")
    model.norm.bias = None
    plan = plan_for(model)
    assert [edit.name for edit in plan.edits] == ["norm.weight"]
    assert torch.count_nonzero(channel(repaired(model, plan).features(inputs("conv2d with bias")), 2)) == 0


def test_a_norm_with_beta_and_no_gamma_loses_its_beta_too() -> None:
    model = network("conv2d with bias")
    with torch.no_grad():
        rescale(model.layer, 2, 10.0)
    model.norm.weight = None
    plan = plan_for(model)
    assert torch.count_nonzero(channel(repaired(model, plan).features(inputs("conv2d with bias")), 2)) == 0


def test_a_bias_kept_as_a_buffer_goes_with_its_filter() -> None:
    model = network("conv2d with bias", norm=False)
    bias = model.layer.bias.detach()
    del model.layer.bias
    model.layer.register_buffer("bias", bias)
    plan = plan_for(model)
    assert plan.report().pruned == 1
    assert torch.count_nonzero(channel(repaired(model, plan).features(inputs("conv2d with bias")), 2)) == 0


def test_a_computed_bias_would_outlive_its_filter() -> None:
    model = network("conv2d with bias", norm=False)
    parametrize.register_parametrization(model.layer, "bias", nn.Softplus())
    plan = plan_for(model)
    assert plan.edits == ()
    (layer,) = plan.report().layers
    assert layer.immutable == (2,)


BROKEN = [
    "layer.weight",
    "layer.bias",
    "norm.weight",
    "norm.bias",
    "norm.running_mean",
    "norm.running_var",
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("kind", ["linear", "conv2d with bias", "transposed grouped", "depthwise"])
def test_a_broken_channel_is_reported_pruned_and_finite_again(kind: str, name: str, value: float) -> None:
    model, healthy = network(kind), network(kind)
    with torch.no_grad():
        target = filters_of(model.layer)[3] if name == "layer.weight" else model.state_dict()[name][3:4]
        target.view(-1)[:1].fill_(value) if target.is_contiguous() else target[0].fill_(value)
    plan = plan_for(model)
    (layer,) = plan.report().layers
    copy = repaired(model, plan)
    out = copy.features(inputs(kind))
    assert torch.isfinite(out).all()
    assert torch.isfinite(copy(inputs(kind))).all()
    assert torch.count_nonzero(channel(out, 2)) == 0
    if name == "norm.running_var" and value == math.inf:  # divides everything by infinity: an honest constant
        assert layer.not_finite == ()
        return
    assert layer.not_finite == (3,)
    assert layer.scores[3] is None
    assert layer.pruned == (2, 3)
    assert torch.count_nonzero(channel(out, 3)) == 0
    # The other channels are measured as if there were seven.
    scores = channel_lipschitz(healthy)["layer"][[0, 1, 2, 4, 5, 6, 7]]
    assert (layer.mean, layer.std) == pytest.approx((scores.mean().item(), scores.std(correction=0).item()), rel=1e-6)
    untouched = [0, 1, 4, 5, 6, 7]
    torch.testing.assert_close(channel(out, *untouched), channel(healthy.features(inputs(kind)), *untouched))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_a_broken_variance_heals(value: float, affine: bool) -> None:
    model = network("conv2d", affine=affine)
    model.norm.running_var[3] = value
    copy = repaired(model, plan_for(model))
    out = copy.features(inputs("conv2d"))
    assert torch.isfinite(out).all()
    assert torch.count_nonzero(channel(out, 3)) == 0


@pytest.mark.parametrize("name", ["weight_norm", "weight_norm linear", "older weight_norm"])
@pytest.mark.parametrize("part", ["direction", "length", "zero direction"])
def test_a_broken_weight_norm_heals(name: str, part: str) -> None:
    """v / |v| must be a number, or zero times it is none: the direction becomes ones."""
    model = network(name)
    layer = layer_graph(model)["layer"]
    tensor = Tensors(model)[layer.gain if part == "length" else layer.weight]
    with torch.no_grad():
        tensor[3] = 0.0 if part == "zero direction" else math.nan
    plan = plan_for(model)
    assert plan.report().layers[0].not_finite == (3,)
    copy = repaired(model, plan)
    out = copy.features(inputs(name))
    assert torch.isfinite(out).all()
    assert torch.count_nonzero(channel(out, 3)) == 0
    plan.undo(copy)
    assert torch.isnan(copy.features(inputs(name))[:, 3]).all()


def test_a_broken_filter_that_cannot_be_edited_is_said() -> None:
    model = network("spectral_norm")
    with torch.no_grad():
        model.layer.parametrizations.weight.original[3] = math.nan
    plan = plan_for(model)
    (layer,) = plan.report().layers
    assert plan.edits == ()
    assert layer.immutable == tuple(range(8))  # one NaN makes the spectral norm of the whole weight NaN
    assert any(remark.path == "layer" for remark in plan.left_alone)


SHRINK = {"upper": 4.0, "band": 2.1}  # the outlier lies at about 2.6


@pytest.mark.parametrize("shrink_to", ["edge", "mean"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name].weight_edits])
def test_shrinking_through_gamma_lands_on_the_target_and_shifts_nothing(
    name: str, affine: bool, shrink_to: str
) -> None:
    model = network(name, affine=affine, dtype=torch.float64)
    plan = plan_for(model, shrink_to=shrink_to, **SHRINK)
    (layer,) = plan.report().layers
    assert layer.scaled == (2,)
    assert layer.pruned == ()
    copy = repaired(model, plan)
    after = channel_lipschitz(copy)["layer"]
    target = layer.band if shrink_to == "edge" else layer.mean
    assert after[2].item() == pytest.approx(target, rel=1e-12)
    torch.testing.assert_close(after[OTHERS], channel_lipschitz(model)["layer"][OTHERS], rtol=0, atol=0)
    # Same slope, no shift: (z - beta) shrinks by the factor, so that z = beta at the running mean stays.
    x = inputs(name, dtype=torch.float64)
    beta = model.norm.bias[2] if affine else 0.0
    expected = beta + layer.factors[0] * (channel(model.features(x), 2) - beta)
    torch.testing.assert_close(channel(copy.features(x), 2), expected)


@pytest.mark.parametrize("name", ["conv2d with bias", "linear", "transposed grouped", "weight_norm"])
@pytest.mark.parametrize("norm", [True, False])
def test_shrinking_through_the_weight_is_eq_9_to_the_letter(name: str, norm: bool) -> None:
    model = network(name, norm=norm, dtype=torch.float64)
    with torch.no_grad():
        if norm and "_norm" in name:
            rescale(model.layer, 2, 30.0)
    plan = plan_for(model, scale="weight", shrink_to="mean", **SHRINK)
    (layer,) = plan.report().layers
    assert layer.scaled == (2,)
    copy = repaired(model, plan)
    (factor,) = layer.factors
    assert factor == pytest.approx(layer.mean / layer.scores[2])
    x = inputs(name, dtype=torch.float64)
    bias = model.layer.bias[2]
    torch.testing.assert_close(
        channel(copy.layer(x), 2) - bias, factor * (channel(model.layer(x), 2) - bias)
    )  # the bias stays
    assert {edit.name for edit in plan.edits} <= {
        "layer.weight",
        "layer.parametrizations.weight.original0",
    }


def test_enlarging_makes_no_number_infinite() -> None:
    """As printed, a band below the mean enlarges: here by 200,000, which gamma cannot hold in float16."""
    model = network("conv2d 1x1", dtype=torch.float16, outliers=False)
    with torch.no_grad():
        model.layer.weight[4] = 6e-8
        model.norm.weight[4] = 1.0
    plan = plan_for(model, upper=2.6, band=9.0, shrink_to="mean", upscale=True)
    assert 4 in plan.report().layers[0].scaled
    copy = repaired(model, plan)
    assert copy.norm.weight[4].item() == torch.finfo(torch.float16).max
    assert torch.isfinite(copy.state_dict()["norm.weight"]).all()


class Shared(nn.Module):
    """Two convolutions that may share tensors."""

    def __init__(self, *, norms: bool) -> None:
        super().__init__()
        self.conv1 = network("conv2d with bias", seed=1).layer
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.norm1 = nn.BatchNorm2d(8) if norms else nn.Identity()
        self.norm2 = nn.BatchNorm2d(8) if norms else nn.Identity()
        self.fc = nn.Linear(8, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_a_norm_tensor_that_another_layer_uses_is_left_alone(name: str) -> None:
    model = Shared(norms=True)
    setattr(model.norm2, name, getattr(model.norm1, name))
    plan = plan_for(model)
    assert plan.edits == ()
    assert plan.report().layers[0].immutable == (2,)
    assert any("shared with another layer" in remark.reason for remark in plan.left_alone)


def test_a_bias_that_another_layer_uses_is_left_alone() -> None:
    model = Shared(norms=False)
    model.conv2.bias = model.conv1.bias
    plan = plan_for(model)
    assert plan.edits == ()
    assert any("shared with another layer" in remark.reason for remark in plan.left_alone)


@pytest.mark.parametrize("norms", [True, False])
def test_a_weight_of_two_layers_is_scored_once_and_cut_through_norms_only(norms: bool) -> None:
    first, second = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
    rescale(first, 2, 30.0)
    second.weight = first.weight
    one, other = ([nn.BatchNorm2d(8)] if norms else [] for _ in range(2))
    model = nn.Sequential(first, *one, nn.ReLU(), second, *other, nn.ReLU(), nn.Conv2d(8, 3, 1)).eval()
    plan = plan_for(model)
    if norms:  # each layer has its own norm, and its own score with it
        assert [(layer.path, layer.pruned) for layer in plan.report().layers] == [("0", (2,)), ("3", (2,))]
        assert {edit.name for edit in plan.edits} == {"1.weight", "1.bias", "4.weight", "4.bias"}
        return
    (layer,) = plan.report().layers
    assert (layer.path, layer.pruned, layer.immutable) == ("0", (), (2,))
    assert plan.edits == ()
    assert {(remark.path, remark.reason) for remark in plan.left_alone} == {
        ("0", "its outliers cannot be pruned: its weight is shared with another layer"),
        ("2", "shares its weight with 0 and is scored there"),
        ("4", "its rows are the network's answers, not hidden channels"),
    }


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_with_no_channels_is_said_and_not_scored() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 0, 1), nn.BatchNorm2d(0)).eval()
    plan = plan_for(model)
    assert [layer.path for layer in plan.report().layers] == ["0"]
    assert [remark.path for remark in plan.not_covered] == ["1"]
