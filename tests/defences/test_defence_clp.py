"""CLP against a transcription of its published formula, and where it departs from it."""

import math

import pytest
import torch
from torch import Tensor, nn

from layer_zoo import network
from unbackdoor.defences.data_free import CLP
from unbackdoor.errors import SettingError
from unbackdoor.graph import layer_graph
from unbackdoor.models.preact_resnet import preactresnet18
from unbackdoor.models.resnet import resnet18
from unbackdoor.models.vgg import vgg19, vgg19_bn


def published(model: nn.Module, *, eps: bool) -> dict[str, Tensor]:
    """The formula: for every BatchNorm, with the convolution registered last before it, per channel
    sigma_max of (c_in, k*k), times |gamma / sqrt(var)|, without eps.
    """
    constants: dict[str, Tensor] = {}
    conv = None
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            conv = module
        elif isinstance(module, nn.BatchNorm2d) and conv is not None:
            one = []
            for j in range(module.num_features):
                sigma = torch.svd(conv.weight[j].detach().reshape(conv.weight.shape[1], -1))[1].max()
                var = module.running_var[j] + (module.eps if eps else 0)
                one.append(sigma * (module.weight[j].detach() / var.sqrt()).abs())
            constants[path] = torch.stack(one)
    return constants


def cut(constants: dict[str, Tensor], u: float) -> dict[str, list[int]]:
    """Above mean + u * std, the sample's."""
    return {path: (one > one.mean() + u * one.std()).nonzero().flatten().tolist() for path, one in constants.items()}


def heavy_tailed(model: nn.Module, seed: int) -> nn.Module:
    """Random statistics, and channel scales with a heavy tail, so that many channels are pruned."""
    generator = torch.Generator().manual_seed(seed)

    def random(size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight *= random(len(module.weight)).exp()[:, None, None, None]
            elif isinstance(module, nn.BatchNorm2d):
                size = module.num_features
                module.weight.copy_(random(size))
                module.bias.copy_(random(size))
                module.running_mean.copy_(random(size))
                module.running_var.copy_(random(size).exp())
    return model.eval()


@pytest.mark.parametrize(
    ("build", "width", "seed"),
    [(resnet18, 64, 0), (resnet18, 16, 1), (resnet18, 16, 2), (vgg19_bn, 64, 3), (vgg19_bn, 16, 4), (vgg19_bn, 16, 5)],
)
def test_masks_are_those_of_the_published_formula(build: object, width: int, seed: int) -> None:
    with torch.device("meta"):
        empty = build(width=width)
    model = heavy_tailed(empty.to_empty(device="cpu"), seed)
    graph = layer_graph(model)
    without, with_eps = (published(model, eps=eps) for eps in (False, True))
    total = 0
    for u in (1.0, 2.0, 3.0):
        for method, constants in ((CLP(u=u, norm_factor="no_eps", only_with_norm=True), without), (CLP(u=u), with_eps)):
            report = method.plan(model, graph=graph).report()
            assert {layer.norm: list(layer.pruned) for layer in report.layers} == cut(constants, u)
            for layer in report.layers:
                assert layer.scores == pytest.approx(constants[layer.norm].tolist(), rel=1e-5)
            assert report.scaled == 0
            total += report.pruned
    assert total > 10 * len(without)


def test_the_cut_by_hand() -> None:
    """Channels 1 (nine times) and 11: mean 2, sample variance (9 + 81) / 9 = 10, so that 11 lies at 9 / 3.16 = 2.85."""
    model = nn.Sequential(nn.Conv2d(1, 10, 1, bias=False), nn.BatchNorm2d(10, eps=0.0), nn.Conv2d(10, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)[9] = 11.0
    (layer,) = CLP().plan(model).report().layers
    assert (layer.mean, layer.std) == (2.0, pytest.approx(math.sqrt(10)))
    assert layer.pruned == ()
    assert any("no score can" in note for note in layer.notes)
    outcome = CLP(u=2.84)(model)
    assert outcome.report.layers[0].pruned == (9,)
    assert outcome.model[1].weight.tolist() == [1.0] * 9 + [0.0]
    assert outcome.model[1].bias.tolist() == [0.0] * 10
    assert torch.equal(outcome.model[0].weight, model[0].weight)
    (population,) = CLP(correction=0).plan(model).report().layers
    assert population.std == pytest.approx(3.0)


def test_only_the_upper_side_is_cut_and_nothing_is_shrunk() -> None:
    model = nn.Sequential(nn.Conv2d(1, 10, 1, bias=False), nn.BatchNorm2d(10), nn.Conv2d(10, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight.fill_(5.0)[9] = 0.0
    assert CLP(u=0.5).plan(model).edits == CLP(u=1.0).plan(model).edits == ()
    (layer,) = CLP().plan(model).report().layers
    assert (layer.lower, layer.band) == (None, None)


def test_u_at_infinity_changes_nothing() -> None:
    assert CLP(u=math.inf).plan(heavy_tailed(resnet18(width=8), 0)).edits == ()


def test_spectral_differs_from_length_where_filters_have_rank() -> None:
    """Two singular values 3 and 4 against one 4.5: CLP's largest is the second filter, LPP's the first."""
    model = nn.Sequential(nn.Conv1d(2, 2, 2, bias=False), nn.BatchNorm1d(2, eps=0.0), nn.Conv1d(2, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[4.5, 0.0], [0.0, 0.0]]]))
    (layer,) = CLP().plan(model).report().layers
    assert layer.scores == (4.0, 4.5)


class TestDepartures:
    def test_networks_without_norms_are_scored_unless_published(self) -> None:
        model = heavy_tailed(vgg19(width=8), 0)
        assert CLP(u=1.0).plan(model).report().pruned > 0
        report = CLP.as_published().plan(model).report()
        assert report.layers == ()
        reasons = [r.reason for r in report.left_alone if "as published scores convolutions" in r.reason]
        assert len(reasons) == 16  # said of every convolution, where the published code says nothing

    def test_pairs_come_from_the_dataflow(self) -> None:
        """In a pre-activation network the convolution registered last before a norm often does not feed it."""
        model = heavy_tailed(preactresnet18(width=8), 0)
        report = CLP().plan(model).report()
        assert {layer.path: layer.norm for layer in report.layers if layer.norm} == layer_graph(model).pairs
        assert all(layer.path.endswith("conv1") and layer.norm.endswith("bn2") for layer in report.layers if layer.norm)

    def test_a_variance_of_zero_does_not_switch_its_layer_off(self) -> None:
        """The formula's infinity makes mean and std NaN, and no score is above NaN."""
        model = network("conv2d")
        model.norm.running_var[4] = 0.0
        assert cut(published(model, eps=False), 2.0) == {"norm": []}
        report = CLP(u=2.0).plan(model).report()
        assert report.layers[0].pruned == (4,)
        assert report.layers[0].not_finite == ()
        # Even as published the broken channel is set apart instead.
        (layer,) = CLP(u=2.0, norm_factor="no_eps").plan(model).report().layers
        assert layer.not_finite == (4,)
        assert layer.pruned == (2, 4)

    def test_linear_layers(self) -> None:
        """With a norm a Linear is a 1x1 convolution; the published code knows convolutions only."""
        model = network("linear")
        assert [layer.path for layer in CLP().plan(model).report().layers] == ["layer"]
        assert CLP.as_published().plan(model).report().layers == ()
        bare = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        assert CLP().plan(bare).report().layers == ()


def test_as_published() -> None:
    assert CLP.as_published() == CLP(norm_factor="no_eps", only_with_norm=True)
    settings = {"u": 3.0, "norm_factor": "folded", "only_with_norm": False, "correction": 1, "budget": math.inf}
    assert CLP().settings() == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"u": -1}, "u: expected a number from 0 to inf, got -1"),
        ({"u": math.nan}, "u: expected a number from 0 to inf, got nan"),
        ({"u": False}, "u: expected a number from 0 to inf, got False"),
        ({"u": "3"}, "u: expected a number from 0 to inf, got '3'"),
        ({"norm_factor": "x"}, "norm_factor: expected one of folded, no_eps, printed, none, got 'x'"),
        ({"only_with_norm": "yes"}, "only_with_norm: expected one of False, True, got 'yes'"),
        ({"correction": -1}, "correction: expected one of 0, 1, got -1"),
    ],
)
def test_invalid_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}$"):
        CLP(**settings)
