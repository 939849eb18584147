"""Channel constants against autograd, against singular value decompositions, and under changes that must not matter."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from layer_zoo import KINDS, PLAIN, filters_of, inputs, network
from unbackdoor.channel_scores import channel_lipschitz
from unbackdoor.errors import SettingError
from unbackdoor.findings.layers import Layer
from unbackdoor.graph import layer_graph
from unbackdoor.graph.tensors import Tensors
from unbackdoor.lipschitz import (
    constants_of,
    filters,
    fold_factors,
    l2_norms,
    spectral_norms,
)

CONV = Layer(path="layer", kind="Conv2d", out_channels=0, rule="fx", weight="layer.weight")


def constants(weight: Tensor, norm: str, **layer: object) -> Tensor:
    described = dataclasses.replace(CONV, **{"out_channels": len(weight), **layer})
    return constants_of([weight], [described], norm)


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "bare"])
@pytest.mark.parametrize("name", KINDS)
def test_a_constant_is_the_gradient_norm_of_one_pre_activation(name: str, norm: bool) -> None:
    """For a linear map |f(x) - f(x')| <= c |x - x'| holds with c = |df/dx|, and with no smaller c.

    The pixel in the middle sees its whole patch; of a transposed convolution of stride 1 it hears from every place of
    the kernel, too.
    """
    model = network(name, norm=norm, dtype=torch.float64)
    x = inputs(name, batch=1, dtype=torch.float64).requires_grad_()
    out = model.features(x)
    middle = tuple(size // 2 for size in out.shape[2:])
    scores = channel_lipschitz(model)["layer"]
    for channel in range(KINDS[name].channels):
        (gradient,) = torch.autograd.grad(out[(0, channel, *middle)], x, retain_graph=True)
        assert gradient.norm().item() == pytest.approx(scores[channel].item(), rel=1e-9)


def test_a_strided_transposed_pixel_hears_a_part_of_its_filter_and_all_phases_together_the_whole() -> None:
    layer = nn.ConvTranspose2d(3, 4, 4, stride=2).double()
    x = torch.zeros(1, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    for channel, score in enumerate(channel_lipschitz(nn.Sequential(layer, nn.BatchNorm2d(4).double().eval()))["0"]):
        squares = [
            torch.autograd.grad(out[0, channel, 6 + i, 6 + j], x, retain_graph=True)[0].square().sum().item()
            for i in (0, 1)
            for j in (0, 1)
        ]
        assert all(square < (score * math.sqrt(1 + 1e-5)).item() ** 2 for square in squares)
        assert math.sqrt(sum(squares) / (1 + 1e-5)) == pytest.approx(score.item(), rel=1e-9)


@pytest.mark.parametrize("name", PLAIN)
def test_filters_belong_to_their_channels(name: str) -> None:
    model = network(name, norm=False)
    layer = layer_graph(model)["layer"]
    found = filters(model.layer.weight.detach(), layer)
    for one, expected in zip(found, filters_of(model.layer), strict=True):
        assert torch.equal(one.flatten(), expected.flatten())


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(PLAIN), seed=st.integers(0, 2**20), norm=st.sampled_from(["l2", "l2sq", "spectral"]))
def test_permuting_channels_permutes_their_scores(name: str, seed: int, norm: str) -> None:
    model, permuted = network(name, seed=seed), network(name, seed=seed)
    groups = getattr(model.layer, "groups", 1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(8)
    if getattr(model.layer, "transposed", False):  # within a group: its channels share input channels
        for part in order.view(groups, -1):
            part.copy_(part[torch.randperm(len(part), generator=generator)])
    else:
        order = torch.randperm(8, generator=generator)
    sources = [one.clone() for one in filters_of(model.layer)]
    with torch.no_grad():
        for target, source in zip(filters_of(permuted.layer), order.tolist(), strict=True):
            target.copy_(sources[source])
        for tensor in (*permuted.norm.parameters(), permuted.norm.running_mean, permuted.norm.running_var):
            tensor.copy_(tensor[order])
    before, after = (channel_lipschitz(m, norm=norm)["layer"] for m in (model, permuted))
    torch.testing.assert_close(after, before[order], rtol=1e-6, atol=0)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(PLAIN),
    factor=st.floats(1e-3, 1e3),
    norm=st.sampled_from(["l2", "spectral"]),
)
def test_rescaling_a_layer_and_its_statistics_changes_nothing_that_the_network_computes(
    name: str, factor: float, norm: str
) -> None:
    """So that no score may change either. Under the factor as printed all change by the square."""
    model, scaled = network(name, dtype=torch.float64), network(name, dtype=torch.float64)
    model.norm.eps = scaled.norm.eps = 0.0
    with torch.no_grad():
        scaled.layer.weight *= factor
        if scaled.layer.bias is not None:
            scaled.layer.bias *= factor
        scaled.norm.running_mean *= factor
        scaled.norm.running_var *= factor**2
    x = inputs(name, dtype=torch.float64)
    torch.testing.assert_close(model(x), scaled(x))
    for kind, power in {"folded": 0, "no_eps": 0, "none": 1, "printed": 2, "printed_signed": 2}.items():
        before, after = (channel_lipschitz(m, norm=norm, factor=kind)["layer"] for m in (model, scaled))
        torch.testing.assert_close(after, before * factor**power, rtol=1e-9, atol=0)


def test_eps_is_all_that_rescaling_can_change() -> None:
    """|w| = 5, gamma = 2, var + eps = 0.75 + 0.25 = 1: 10. All times 2: |w| = 10, var + eps = 3 + 0.25."""
    layer, norm = nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1, eps=0.25).eval()
    model = nn.Sequential(layer, norm)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0]]))
        norm.weight.fill_(2.0)
        norm.running_var.fill_(0.75)
    assert channel_lipschitz(model)["0"].item() == 10.0
    with torch.no_grad():
        layer.weight *= 2
        norm.running_var *= 4
    assert channel_lipschitz(model)["0"].item() == pytest.approx(20 / math.sqrt(3.25))


@pytest.mark.parametrize(
    ("factor", "expected"),
    # |w| = 5, gamma = -2, var = 16, eps = 9
    [
        ("folded", 5 * 2 / 5),
        ("no_eps", 5 * 2 / 4),
        ("printed", 5 * 4 / 2),
        ("printed_signed", -5 * 4 / 2),
        ("none", 5.0),
    ],
)
def test_every_factor_by_hand(factor: str, expected: float) -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1, eps=9.0)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
        model[1].weight.fill_(-2.0)
        model[1].running_var.fill_(16.0)
    assert channel_lipschitz(model, factor=factor)["0"].item() == expected
    # The other reading of Sec. 3.3 squares the whole constant, factor and all.
    assert channel_lipschitz(model, factor=factor, norm="l2sq")["0"].item() == expected**2


def test_l2_and_spectral_by_hand() -> None:
    """One filter with two input channels and two places: [[3, 0], [0, 4]]. Length 5, singular values 4 and 3."""
    weight = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
    assert constants(weight, "l2").tolist() == [5.0]
    assert constants(weight, "spectral").tolist() == [4.0]


SHAPES = st.sampled_from(
    [
        (6, 4, 3, 3),
        (5, 16, 3, 3),
        (4, 3, 7, 7),
        (6, 7, 1, 1),
        (8, 1, 3, 3),
        (5, 6, 4),
        (4, 2, 2, 3, 2),
        (7, 12),
        (3, 9, 9),
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    shape=SHAPES,
    exponent=st.sampled_from([-44, -30, -19, -3, 0, 6, 18, 25, 37]),
    rank=st.sampled_from([1, 99]),
    seed=st.integers(0, 2**20),
)
def test_both_norms_are_exact_at_every_magnitude(shape: tuple[int, ...], exponent: int, rank: int, seed: int) -> None:
    """Channels of magnitudes that lie far apart, in float32: squares would leave its range on both sides."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    if rank == 1:  # the worst case for eigenvalues: all but one are zero
        weight = weight[:, :1].expand(shape).clone()
    weight[0] *= 10.0**exponent
    weight = weight.float()  # what is left of it at 1e-44 is the number that counts
    matrices = weight.double().reshape(len(weight), shape[1], -1)
    torch.testing.assert_close(constants(weight, "l2"), matrices.norm(dim=(1, 2)), rtol=1e-5, atol=0)
    expected = torch.linalg.svdvals(matrices)[:, 0]
    torch.testing.assert_close(constants(weight, "spectral"), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
@pytest.mark.parametrize("norm", ["l2", "spectral"])
def test_double_precision_has_no_limits_either(scale: float, norm: str, generator: torch.Generator) -> None:
    weight = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(constants(weight * scale, norm), constants(weight, norm) * scale, rtol=1e-12, atol=0)


def test_the_squared_score_of_a_large_filter_is_finite() -> None:
    model = network("conv2d", norm=False)
    with torch.no_grad():
        model.layer.weight *= 1e25
    scores = channel_lipschitz(model, norm="l2sq")["layer"]
    torch.testing.assert_close(scores, channel_lipschitz(model)["layer"] ** 2, rtol=0, atol=0)


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**20))
def test_the_two_norms_bound_each_other(shape: tuple[int, ...], seed: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    layer = dataclasses.replace(CONV, out_channels=len(weight))
    length, sigma = l2_norms(weight, layer), spectral_norms(weight, layer)
    rank = min(shape[1], math.prod(shape[2:]))
    assert bool((sigma <= length * (1 + 1e-12)).all())
    assert bool((length <= math.sqrt(rank) * sigma * (1 + 1e-12)).all())
    if rank == 1:
        assert torch.equal(sigma, length)


@pytest.mark.parametrize("norm", ["l2", "l2sq", "spectral"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_filter_breaks_its_own_score_alone(norm: str, value: float) -> None:
    for name in ("conv2d", "conv2d 1x1", "linear", "transposed grouped", "depthwise"):
        model = network(name)
        healthy = channel_lipschitz(model, norm=norm)["layer"]
        with torch.no_grad():
            filters_of(model.layer)[3].view(-1)[1:2].fill_(value) if name != "transposed grouped" else filters_of(
                model.layer
            )[3][0, 0].fill_(value)
        scores = channel_lipschitz(model, norm=norm)["layer"]
        assert torch.isfinite(scores).logical_not().nonzero().flatten().tolist() == [3]
        others = torch.arange(8) != 3
        torch.testing.assert_close(scores[others], healthy[others], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["layer.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_whatever_makes_a_channel_put_out_nan_breaks_its_score(name: str, value: float) -> None:
    model = network("conv2d with bias")
    with torch.no_grad():
        model.state_dict()[name][3] = value
    score = channel_lipschitz(model)["layer"][3].item()
    out = model.features(inputs("conv2d with bias"))[:, 3]
    # An infinite variance alone makes an honest zero of everything.
    assert math.isfinite(score) == bool(torch.isfinite(out).all())
    assert math.isfinite(score) == (name == "norm.running_var" and value == math.inf)


def test_a_negative_variance_is_broken_unless_eps_makes_up_for_it() -> None:
    model = network("conv2d")
    with torch.no_grad():
        model.norm.running_var[3] = -0.5
        model.norm.running_var[4] = -0.5e-5  # eps is 1e-5
    assert torch.isfinite(channel_lipschitz(model)["layer"]).logical_not().nonzero().flatten().tolist() == [3]
    without = channel_lipschitz(model, factor="no_eps")["layer"]
    assert torch.isfinite(without).logical_not().nonzero().flatten().tolist() == [3, 4]


def test_gamma_zero_scores_zero() -> None:
    model = network("conv2d")
    with torch.no_grad():
        model.norm.weight[3] = 0.0
    assert channel_lipschitz(model)["layer"][3].item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    """4,608 squares of 200 are beyond what float16 can hold."""
    model = network("conv2d", dtype=dtype)
    assert torch.equal(channel_lipschitz(model)["layer"], channel_lipschitz(model.float())["layer"])
    weight = torch.full((2, 512, 3, 3), 200.0, dtype=dtype)
    assert constants(weight, "l2").tolist() == pytest.approx([200 * math.sqrt(4608)] * 2)
    assert constants(weight, "spectral").tolist() == pytest.approx([200 * math.sqrt(4608)] * 2)


@pytest.mark.parametrize("name", PLAIN)
def test_memory_format_does_not_matter(name: str) -> None:
    model = network(name, norm=False)
    weight = model.layer.weight.detach()
    layer = layer_graph(model)["layer"]
    turned = weight.movedim(0, -1).contiguous().movedim(-1, 0)
    assert turned.stride() != weight.stride() or weight.ndim == 2 or 1 in weight.shape
    for norm in ("l2", "spectral"):
        a, b = (constants_of([w], [layer], norm) for w in (weight, turned))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_tensors_of_a_file_score_as_the_network_does(name: str) -> None:
    model = network(name)
    graph = layer_graph(model)
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    expected = channel_lipschitz(model)
    found = channel_lipschitz(tensors, graph=graph)
    if graph["layer"].parametrization == "other":  # a file does not say how the weight is made
        assert list(found) == ["fc"]
    else:
        assert list(found) == list(expected)
        torch.testing.assert_close(found["layer"], expected["layer"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["spectral_norm", "older spectral_norm", "weight_norm"])
def test_scoring_in_train_mode_steps_no_power_iteration(name: str) -> None:
    model = network(name)
    expected = channel_lipschitz(model)["layer"]
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert torch.equal(channel_lipschitz(model)["layer"], expected)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_scores_are_double_precision_on_the_cpu_and_belong_to_no_graph() -> None:
    for score in channel_lipschitz(network("conv2d")).values():
        assert (score.dtype, score.device.type, score.requires_grad) == (torch.float64, "cpu", False)


def test_fold_factors_are_functions_of_numbers_alone() -> None:
    gamma, var, eps = torch.tensor([2.0, -2.0]), torch.tensor([3.0, 8.0]), torch.tensor([1.0, 1.0])
    assert fold_factors(gamma, var, eps, "folded").tolist() == pytest.approx([1.0, 2 / 3])
    assert fold_factors(gamma, var, eps, "none").tolist() == [1.0, 1.0]


def test_mixed_precisions_are_scored_each_in_its_own() -> None:
    model = network("conv2d")
    expected = channel_lipschitz(model)["layer"]
    model.norm.double()
    torch.testing.assert_close(channel_lipschitz(model)["layer"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l3"}, "norm: expected one of l2, l2sq, spectral, got 'l3'"),
        (
            {"factor": "inverse"},
            "norm_factor: expected one of folded, no_eps, printed, printed_signed, none, got 'inverse'",
        ),
    ],
)
def test_unknown_settings_are_named(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        channel_lipschitz(network("conv2d"), **arguments)


def test_bare_tensors_need_a_graph() -> None:
    with pytest.raises(SettingError, match="give graph="):
        channel_lipschitz(network("conv2d").state_dict())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("grouped", "names layer.bias, which this network does not have"),
        ("conv2d 1x1", "names layer.bias"),
        ("transposed2d", r"expects 8 channels in layer.weight, got shape \(8, 3, 3, 3\)"),
    ],
)
def test_the_graph_of_another_network_is_refused(other: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        channel_lipschitz(network("conv2d"), graph=layer_graph(network(other)))


def test_tensors_are_a_mapping_with_tied_names_and_buffers() -> None:
    model = network("conv2d")
    model.again = model.layer
    tensors = Tensors(model)
    names = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers(remove_duplicate=False))}
    assert set(tensors) == names
    assert len(tensors) == len(names)
    assert tensors["again.weight"] is tensors["layer.weight"] is model.layer.weight


def test_every_norm_has_its_own_eps() -> None:
    """Ones everywhere: 1 / sqrt(1 + 3) and 1 / sqrt(1 + 8)."""
    parts = [nn.Linear(1, 1), nn.BatchNorm1d(1, eps=3.0), nn.Linear(1, 1), nn.BatchNorm1d(1, eps=8.0)]
    model = nn.Sequential(*parts, nn.Linear(1, 2)).eval()
    with torch.no_grad():
        for layer in parts[::2]:
            layer.weight.fill_(1.0)
    scores = channel_lipschitz(model)
    assert (scores["0"].item(), scores["2"].item()) == pytest.approx((1 / 2, 1 / 3))
