"""Pairs from names and order alone: right or not at all, and what is not read is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layer_zoo import calibrate
from unbackdoor.channel_scores import channel_lipschitz
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph import layer_graph
from unbackdoor.graph.readers.names import agreeing, of_tensors
from unbackdoor.models import parse_arch


def state_of(arch: str) -> dict[str, Tensor]:
    return parse_arch(arch).build(device="meta").state_dict()


def refused(graph: LayerGraph) -> dict[str, str]:
    return {remark.path: remark.reason for remark in graph.uncovered}


def trained(arch: str) -> nn.Module:
    """A network with fresh weights and the statistics of a batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return calibrate(parse_arch(arch).build(), torch.rand(32, 3, 32, 32))


def parts(graph: LayerGraph) -> dict[str, set[str]]:
    """Part -> the layers that have it."""
    return {part: {x.path for x in graph.layers if x.part == part} for part in ("hidden", "answer", "unknown")}


@pytest.mark.parametrize("arch", ["resnet18:width=16", "mobilenetv2"])
def test_a_file_in_order_gives_what_the_network_gives(arch: str) -> None:
    model = trained(arch)
    graph, network = of_tensors(model.state_dict(), ordered=True), layer_graph(model)
    assert graph.pairs == network.pairs
    assert graph.uncovered == ()
    assert graph.classifier == network.classifier
    assert {layer.rule for layer in graph.layers} == {"names"}
    assert parts(graph)["hidden"] == set(network.pairs)
    assert parts(graph)["unknown"] == set()


@pytest.mark.parametrize("arch", ["resnet18", "vgg16_bn"])
def test_statistics_that_were_never_touched_bear_nothing_out(arch: str) -> None:
    """Mean 0 and variance 1 fit any layer: the pairs are named, and not edited."""
    with torch.random.fork_rng(devices=[]):
        graph = of_tensors(parse_arch(f"{arch}:width=8").build().state_dict(), ordered=True)
    assert graph.pairs == layer_graph(parse_arch(arch).build(device="meta")).pairs
    assert parts(graph)["hidden"] == set()
    assert all("the statistics do not confirm it" in x.why for x in graph.layers if x.norm is not None)


@pytest.mark.parametrize("ordered", [True, False])
def test_preactresnet18_yields_no_pair_at_all(ordered: bool) -> None:
    """Its norms stand in front of the convolutions, and their names say the opposite: 9 of 9 by name are wrong."""
    graph = of_tensors(state_of("preactresnet18"), ordered=ordered)
    assert graph.pairs == {}
    assert [layer.path for layer in graph.layers] == (["linear"] if ordered else [])
    assert graph.classifier == ("linear" if ordered else None)
    assert len(graph.uncovered) == (20 if ordered else 21)
    assert len(graph.unpaired_norms) == 16


def test_names_sorted_by_the_alphabet_pair_nothing() -> None:
    state = state_of("resnet18")
    graph = of_tensors(dict(sorted(state.items())), ordered=False)
    assert graph.pairs == {}
    assert "not keep the order" in refused(graph)["layer1.0.conv1"]


def test_without_norms_the_order_does_not_matter() -> None:
    graph = of_tensors(dict(sorted(state_of("vgg19").items())), ordered=False)
    assert len(graph.layers) == 17
    assert graph.uncovered == ()


@pytest.mark.parametrize(
    ("entries", "pairs"),
    [
        (["conv1", "bn1"], {"bn1": "conv1"}),
        (["bn1", "conv1"], {}),
        (["conv1", "conv2", "bn1", "bn2"], {"bn2": "conv2"}),
        (["conv1", "bn1", "conv2", "bn3"], {"bn1": "conv1"}),
        (["features.0", "features.1n"], {}),
        (["conv", "norm"], {"norm": "conv"}),
        (["a.conv1", "b.bn1"], {}),
        (["conv1", "bn1", "bn1b"], {"bn1": "conv1"}),
    ],
    ids=str,
)
def test_order_and_names_must_agree(entries: list[str], pairs: dict[str, str]) -> None:
    norms = ("bn", "norm")
    assert (
        agreeing([(path, path.rpartition(".")[2].startswith(norms) or path.endswith("n")) for path in entries]) == pairs
    )


def norm(channels: int, path: str) -> dict[str, Tensor]:
    named = {"weight": torch.ones(channels), "bias": torch.zeros(channels)}
    stats = {"running_mean": torch.zeros(channels), "running_var": torch.ones(channels)}
    return {f"{path}.{name}": tensor for name, tensor in {**named, **stats}.items()}


@pytest.mark.parametrize(
    "state",
    [
        {"conv1.weight": torch.ones(3, 5, 2, 2), "conv1.bias": torch.ones(5)},
        {"deconv1.weight": torch.ones(4, 4, 2, 2)},
        {"decoder.up1.weight": torch.ones(4, 4, 2, 2), "decoder.up1.bias": torch.ones(4)},
        {"conv_transpose.weight": torch.ones(4, 4, 2)},
    ],
    ids=["the bias betrays it", "deconv", "up1", "conv_transpose"],
)
def test_what_may_be_transposed_is_not_scored(state: dict[str, Tensor]) -> None:
    graph = of_tensors(state, ordered=True)
    assert graph.layers == ()
    assert "probably transposed" in graph.uncovered[0].reason


def test_a_transposed_convolution_is_betrayed_by_its_norm() -> None:
    state = {"conv1.weight": torch.ones(3, 5, 2, 2), **norm(5, "bn1")}
    graph = of_tensors(state, ordered=True)
    assert graph.layers == ()
    assert list(refused(graph)) == ["conv1"]


def test_a_transposed_layer_takes_its_norm_along() -> None:
    """The others know that the norm is not theirs."""
    state = {
        "conv1.weight": torch.ones(4, 3, 2, 2),
        **norm(4, "bn1"),
        "deconv2.weight": torch.ones(4, 4, 2, 2),
        "fc.weight": torch.ones(2, 4),
    }
    graph = of_tensors(state, ordered=True)
    assert [layer.path for layer in graph.layers] == ["conv1", "fc"]
    assert list(refused(graph)) == ["deconv2"]


def test_what_a_file_does_not_say_is_said() -> None:
    state = {"conv1.weight": torch.ones(4, 3, 2, 2), **norm(4, "bn1")}
    reasons = [remark.reason for remark in of_tensors(state, ordered=True).aside]
    assert any("eps" in reason for reason in reasons)
    assert any("transposed" in reason for reason in reasons)
    assert of_tensors({"fc.weight": torch.ones(2, 4)}, ordered=True).aside == ()


def test_an_embedding_is_no_linear() -> None:
    graph = of_tensors({"token_embed.weight": torch.ones(9, 4), "fc.weight": torch.ones(2, 4)}, ordered=True)
    assert [layer.path for layer in graph.layers] == ["fc"]
    assert list(refused(graph)) == ["token_embed.weight"]


def test_matrices_of_unknown_use_are_not_covered() -> None:
    state = {"attn.in_proj_weight": torch.ones(12, 4), "lstm.weight_ih_l0": torch.ones(8, 4), "scale": torch.ones(3)}
    graph = of_tensors(state, ordered=True)
    assert sorted(refused(graph)) == ["attn.in_proj_weight", "lstm.weight_ih_l0", "scale"]
    assert "may multiply channels" in refused(graph)["scale"]


@pytest.mark.parametrize(
    "broken",
    [
        {"bn1.running_mean": torch.zeros(())},
        {"bn1.running_mean": torch.zeros(2, 2)},
        {"bn1.running_var": torch.ones(5)},
        {"bn1.weight": torch.ones(3)},
        {"bn1.bias": torch.ones(1)},
    ],
    ids=lambda state: " ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in state.items()),
)
def test_a_norm_whose_tensors_do_not_fit_together_is_refused(broken: dict[str, Tensor]) -> None:
    state = {"conv1.weight": torch.ones(4, 3, 2, 2), **norm(4, "bn1"), **broken}
    graph = of_tensors(state, ordered=True)
    assert graph.norms == {}
    assert "different lengths" in refused(graph)["bn1"]
    assert "does not fit" in refused(graph)["conv1"]


def test_a_bias_that_is_a_number_does_not_stop_the_reader() -> None:
    graph = of_tensors({"fc.weight": torch.ones(2, 4), "fc.bias": torch.ones(())}, ordered=True)
    assert list(refused(graph)) == ["fc"]


def test_an_exported_network_is_not_silently_empty() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    graph = layer_graph(torch.export.export(network, (torch.zeros(2, 3, 8, 8),)).module())
    assert graph.layers == ()
    assert "0.weight" in refused(graph)


def test_a_bare_tensor_without_a_path() -> None:
    graph = of_tensors({"weight": torch.ones(2, 4), "bias": torch.ones(2)}, ordered=True)
    assert [(layer.path, layer.weight, layer.bias) for layer in graph.layers] == [("", "weight", "bias")]


def test_a_network_and_its_file_agree_on_where_the_channels_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    by_file, by_network = of_tensors(model.state_dict(), ordered=True), layer_graph(model)
    assert by_file.pairs == by_network.pairs == {"0": "1"}
    assert [x.out_channels for x in by_file.layers] == [x.out_channels for x in by_network.layers]


class Blocks(nn.Module):
    """A stem, two convolutions with a norm each, a Linear: registered the same way however they are used."""

    def __init__(self, order: str, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.order = order
        self.stem = nn.Conv2d(3, 32, 3)
        self.conv1, self.bn1 = nn.Conv2d(32, 32, 3, padding=1, bias=False), norm(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, padding=1, bias=False), norm(32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
            if self.order == "conv bn relu":
                x = torch.relu(bn(conv(x)))
            elif self.order == "conv bn silu":
                x = nn.functional.silu(bn(conv(x)))
            elif self.order == "conv avgpool bn relu":
                x = torch.relu(bn(nn.functional.avg_pool2d(conv(x), 2, 1)))
            elif self.order == "conv relu bn":
                x = bn(torch.relu(conv(x)))
            elif self.order == "conv gelu bn":
                x = bn(nn.functional.gelu(conv(x)))
            elif self.order == "conv maxpool bn relu":
                x = torch.relu(bn(nn.functional.max_pool2d(conv(x), 2, 1)))
            elif self.order == "bn relu conv":
                x = conv(torch.relu(bn(x)))
            elif self.order == "residual bn relu conv":
                x = x + conv(torch.relu(bn(x)))
            elif self.order == "norm of a sum":
                x = torch.relu(bn(x + conv(x)))
        if self.order == "swapped":
            x = torch.relu(self.bn2(self.conv1(x)))
            x = torch.relu(self.bn1(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def blocks(order: str, seed: int = 0, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Blocks(order, **options)
        with torch.no_grad():  # as after some training: large enough that no activation is nearly linear
            model.stem.weight.mul_(10)
            for name, parameter in model.named_parameters():
                if name.startswith("bn"):
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return calibrate(model, torch.rand(32, 3, 12, 12))


@pytest.mark.parametrize("order", ["conv bn relu", "conv bn silu", "conv avgpool bn relu"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_pair_whose_statistics_fit_is_one(order: str, seed: int) -> None:
    graph = of_tensors(blocks(order, seed).state_dict(), ordered=True)
    assert {x.path: x.norm for x in graph.layers if x.part == "hidden"} == {"conv1": "bn1", "conv2": "bn2"}


@pytest.mark.parametrize(
    "order",
    [
        "conv relu bn",
        "conv gelu bn",
        "conv maxpool bn relu",
        "bn relu conv",
        "residual bn relu conv",
        "norm of a sum",
        "swapped",
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_names_and_order_that_agree_on_a_wrong_pair_are_not_believed(order: str, seed: int) -> None:
    graph = of_tensors(blocks(order, seed).state_dict(), ordered=True)
    assert parts(graph)["hidden"] == set()
    for layer in ("conv1", "conv2"):
        assert "do not fit its weights" in refused(graph)[layer]
    assert graph.unpaired_norms == ("bn1", "bn2")


def test_an_instance_norm_with_running_statistics_is_a_batch_norm_at_test_time() -> None:
    """Its keys are the same, and so is what it computes; the pair is right."""
    norm = partial(nn.InstanceNorm2d, affine=True, track_running_stats=True)
    model = blocks("conv bn relu", norm=norm)
    twin = Blocks("conv bn relu").eval()
    twin.load_state_dict(model.state_dict(), strict=False)
    x = torch.rand(2, 3, 12, 12)
    assert torch.allclose(model(x), twin(x), atol=1e-5)
    assert of_tensors(model.state_dict(), ordered=True).pairs == {"conv1": "bn1", "conv2": "bn2"}


def test_a_few_channels_that_were_edited_do_not_hide_a_pair() -> None:
    state = blocks("conv bn relu").state_dict()
    state["conv1.weight"][4] *= 40
    assert of_tensors(state, ordered=True).pairs == {"conv1": "bn1", "conv2": "bn2"}


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize("name", ["conv1.weight", "bn1.running_mean", "bn1.running_var", "bn1.weight"])
def test_statistics_of_any_value_are_judged_without_an_error(name: str, value: float) -> None:
    state = blocks("conv bn relu").state_dict()
    state[name].fill_(value)
    of_tensors(state, ordered=True)


def test_without_norms_any_layer_may_make_the_answers() -> None:
    state = {"a.weight": torch.rand(8, 3, 3, 3), "b.weight": torch.rand(8, 8, 3, 3), "c.weight": torch.rand(5, 8, 1, 1)}
    graph = of_tensors(state, ordered=True)
    assert parts(graph) == {"hidden": set(), "answer": set(), "unknown": {"a", "b", "c"}}
    assert graph.classifier is None


def test_the_last_layer_registered_is_not_edited_for_it_may_make_the_answers() -> None:
    state = {name: x for name, x in blocks("conv bn relu").state_dict().items() if not name.startswith("fc.")}
    graph = of_tensors(state, ordered=True)
    assert parts(graph) == {"hidden": {"conv1"}, "answer": set(), "unknown": {"stem", "conv2"}}
    assert "may make the answers" in graph["conv2"].why


def test_what_is_called_a_gate_is_not_edited() -> None:
    state = blocks("conv bn relu").state_dict()
    names = {"conv1": "se.conv", "bn1": "se.bn"}
    gate = {
        names.get(name.split(".")[0], name.split(".")[0]) + "." + name.split(".")[1]: x for name, x in state.items()
    }
    graph = of_tensors(gate, ordered=True)
    assert graph["se.conv"].norm == "se.bn"
    assert parts(graph)["unknown"] >= {"se.conv"}
    assert "that of a gate" in graph["se.conv"].why


@pytest.mark.parametrize(
    ("last", "found"),
    [
        ({"fc.weight": (10, 32)}, "fc"),
        ({"head.weight": (10, 64), "head.bias": (10,)}, "head"),
        ({"model.classifier.1.weight": (10, 32)}, "model.classifier.1"),
        ({"time.weight": (10, 32)}, None),
        ({"embed.weight": (10, 32)}, None),
        ({"stft_basis.weight": (10, 32)}, None),
        ({"fc.weight": (10, 33)}, None),
        ({"fc1.weight": (10, 32), "fc2.weight": (10, 10)}, None),
        ({"fc.weight": (32, 32), "out.weight": (3, 32, 3, 3)}, None),
    ],
    ids=str,
)
def test_a_linear_is_the_classifier_only_where_everything_says_so(
    last: dict[str, tuple[int, ...]], found: str | None
) -> None:
    state = {name: x for name, x in blocks("conv bn relu").state_dict().items() if not name.startswith("fc.")}
    graph = of_tensors({**state, **{name: torch.rand(shape) for name, shape in last.items()}}, ordered=True)
    assert (graph.classifier, graph.outputs) == (found, () if found is None else (found,))


def test_a_linear_that_comes_first_is_a_conditioning() -> None:
    state = blocks("conv bn relu").state_dict()
    first = {"fc.weight": state.pop("fc.weight"), "fc.bias": state.pop("fc.bias")}
    assert of_tensors({**first, **state}, ordered=True).classifier is None


@pytest.mark.parametrize("name", ["gamma", "conv.alpha", "block.scale", "layer_scale.weight", "prelu.weight"])
def test_vectors_of_unknown_meaning_are_listed(name: str) -> None:
    state = {"conv.weight": torch.rand(8, 3, 3, 3), "conv.bias": torch.rand(8), name: torch.rand(8)}
    assert "may multiply channels" in refused(of_tensors(state, ordered=True))[name]


def test_vectors_that_make_no_channel_larger_are_not_listed() -> None:
    state = {
        "conv1.weight": torch.rand(8, 3, 3, 3),
        **norm(8, "bn1"),
        "bn1.num_batches_tracked": torch.tensor(3),
        "fc.weight": torch.rand(2, 8),
        "fc.bias": torch.rand(2),
        "temperature": torch.ones(1),
        "logit_scale": torch.tensor(2.0),
    }
    assert refused(of_tensors(state, ordered=True)) == {}


def test_a_mask_on_gamma_enters_the_score() -> None:
    """ANP's norms: a mask beside gamma, and noise that plays no part at test time."""
    state = blocks("conv bn relu").state_dict()
    mask = torch.ones(32)
    mask[3] = 50
    masked = {**state, "bn1.neuron_mask": mask, "bn1.neuron_noise": torch.zeros(32)}
    graph = of_tensors(masked, ordered=True)
    assert list(refused(graph)) == list(refused(of_tensors(state, ordered=True)))
    plain = channel_lipschitz(state, graph=of_tensors(state, ordered=True))["conv1"]
    assert torch.allclose(channel_lipschitz(masked, graph=graph)["conv1"], plain * mask)
    masked["bn1.neuron_mask"] = torch.full((32,), math.nan)
    assert "neuron_mask" in refused(of_tensors(masked, ordered=True))["bn1"]
