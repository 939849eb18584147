"""Every BatchNorm that one layer alone feeds is paired with that layer and no other, in networks as people use them."""

from __future__ import annotations

import pytest
import torch
from graph_networks import MERGING, NETWORKS, build, compare, measure
from graph_truth import watch
from torch import Tensor, nn

from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph import layer_graph

pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

#: Seconds each, to run or to trace.
SLOW = {
    f"timm:{name}"
    for name in (
        *("bat_resnext26ts", "efficientvit_m0", "mvitv2_tiny", "nasnetalarge", "pnasnet5large", "sequencer2d_s"),
        *("tf_efficientnet_b0", "tf_efficientnetv2_b0", "tf_mixnet_s", "tiny_vit_5m_224"),
    )
}


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=pytest.mark.slow if arch in SLOW else ()) for arch in NETWORKS]
)
def test_the_graph_is_the_truth(arch: str) -> None:
    row = measure(arch)
    assert row.wrong == set()
    assert row.missed == set()
    assert row.extra == set()
    assert row.silent == set()
    assert row.computed == set()


@pytest.mark.parametrize("arch", MERGING)
def test_pairs_behind_a_flattening_are_pairs(arch: str) -> None:
    """What the truth does not call a direct feed, arithmetic does."""
    torch.manual_seed(0)
    model = timm.create_model(arch.partition(":")[2], pretrained=False).eval()
    _fill_norms(model)
    model = model.double()
    graph = layer_graph(model)
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        _rescale(model, graph)
        torch.testing.assert_close(model(x), before)
    assert len(graph.pairs) > 40


@pytest.mark.parametrize(
    ("arch", "side"),
    [
        ("preactresnet18:width=4", 32),
        ("resnet18:width=4", 32),
        ("torchvision:googlenet", 96),
        ("torchvision:mobilenet_v3_small", 64),
        ("torchvision:shufflenet_v2_x0_5", 64),
        ("timm:ghostnet_050", 64),
        ("timm:lcnet_050", 64),
    ],
)
def test_rescaling_a_pair_changes_nothing(arch: str, side: int) -> None:
    """A layer's channels times a_j, its norm's mean times a_j and variance times a_j squared: the same network."""
    from unbackdoor.models import parse_arch

    torch.manual_seed(0)
    model = parse_arch(arch).build()
    _fill_norms(model)
    model = model.double()
    graph = layer_graph(model)
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        _rescale(model, graph)
        torch.testing.assert_close(model(x), before)


def _fill_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def _rescale(model: nn.Module, graph: LayerGraph) -> None:
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert graph.pairs
    for layer in graph.layers:
        if layer.norm is not None:
            norm = graph.norms[layer.norm]
            a = 0.5 + torch.rand(layer.out_channels, dtype=torch.float64)
            weight = tensors[layer.weight]
            weight *= a.view(-1, *(1,) * (weight.ndim - 1))
            if layer.bias is not None:
                tensors[layer.bias] *= a
            tensors[norm.mean] *= a
            tensors[norm.var].copy_(a**2 * (tensors[norm.var] + norm.eps) - norm.eps)


def test_a_backbone_with_frozen_norms() -> None:
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    with torch.device("meta"):
        model = resnet_fpn_backbone(backbone_name="resnet50", weights=None).eval()
    batch = torch.empty(1, 3, 64, 64, device="meta")
    truth = watch(model, batch)
    assert len(truth.fed) == 53
    for example in (None, batch):
        assert {norm: layer for layer, norm in layer_graph(model, example).pairs.items()} == truth.fed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"])
def test_a_detector_that_no_tracer_follows_is_read_by_names_and_says_so(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from torchvision.models import get_model

    model = get_model(name, weights=None, weights_backbone=None).eval()
    row = compare(name, model, watch(model, [torch.rand(3, 320, 320)]))
    assert (row.wrong, row.extra, row.silent, row.rule) == (set(), set(), set(), "names")
    assert any("could not be traced" in remark.reason for remark in layer_graph(model).aside)
    assert capfd.readouterr() == ("", "")


# The recorder itself, on networks where the truth can be seen.


class _Mixed(nn.Module):
    """a -> n is a pair; b is read twice; c goes through a ReLU; d's weight is computed; m normalises a sum."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abcd":
            self.add_module(name, nn.Conv2d(3, 3, 1))
        for name in "nmopq":
            self.add_module(name, nn.BatchNorm2d(3))
        self.skip, self.drop = nn.Identity(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.skip(self.a(x)))
        y = self.n(y).reshape(y.shape)
        z = self.b(x)
        y = y + self.o(z) + z
        y = y + self.p(self.c(x).relu())
        y = self.m(y)
        return self.q(nn.functional.conv2d(y, self.d.weight)) + self.d(y)


def test_the_recorder() -> None:
    truth = watch(_Mixed().eval(), torch.zeros(1, 3, 2, 2))
    assert truth.fed == {"n": "a"}
    assert truth.norms == set("nmopq")
    assert truth.layers == set("abcd")
    assert truth.computed == set()


def test_the_recorder_sees_computed_weights() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)).eval()
    truth = watch(model, torch.zeros(1, 3, 2, 2))
    assert truth.fed == {"1": "0"}
    assert truth.computed == {"0"}


def test_the_networks_are_many_and_all_different() -> None:
    assert len(set(NETWORKS)) == len(NETWORKS) >= 150
    assert len([arch for arch in NETWORKS if arch not in SLOW]) >= 60
    model, batch = build("resnet18")
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers(), batch))
