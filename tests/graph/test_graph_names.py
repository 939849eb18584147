"""Pairs from names and order alone: right or not at all, and what is not read is said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.graph import LayerGraph, layer_graph
from unbackdoor.graph.names import agreeing, of_tensors
from unbackdoor.models import parse_arch


def state_of(arch: str) -> dict[str, Tensor]:
    return parse_arch(arch).build(device="meta").state_dict()


def refused(graph: LayerGraph) -> dict[str, str]:
    return {remark.path: remark.reason for remark in graph.uncovered}


@pytest.mark.parametrize("arch", ["resnet18", "vgg16_bn", "vgg19"])
def test_a_file_in_order_gives_what_the_network_gives(arch: str) -> None:
    graph = of_tensors(state_of(arch), ordered=True)
    network = layer_graph(parse_arch(arch).build(device="meta"))
    assert graph.pairs == network.pairs
    assert graph.uncovered == ()
    assert graph.classifier == network.classifier
    assert {layer.rule for layer in graph.layers} == {"names"}


@pytest.mark.parametrize("ordered", [True, False])
def test_preactresnet18_yields_no_pair_at_all(ordered: bool) -> None:
    """Its norms stand in front of the convolutions, and their names say the opposite: 9 of 9 by name are wrong."""
    graph = of_tensors(state_of("preactresnet18"), ordered=ordered)
    assert graph.pairs == {}
    assert graph.layers == ()
    assert len(graph.uncovered) == 21
    assert len(graph.unpaired_norms) == 16


def test_names_sorted_by_the_alphabet_pair_nothing() -> None:
    state = state_of("resnet18")
    graph = of_tensors(dict(sorted(state.items())), ordered=False)
    assert graph.pairs == {}
    assert "keeps no order" in refused(graph)["layer1.0.conv1"]


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
    assert sorted(refused(graph)) == ["attn.in_proj_weight", "lstm.weight_ih_l0"]


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
    assert "not all of one length" in refused(graph)["bn1"]
    assert "does not fit" in refused(graph)["conv1"]


def test_a_bias_that_is_a_number_does_not_stop_the_reader() -> None:
    graph = of_tensors({"fc.weight": torch.ones(2, 4), "fc.bias": torch.ones(())}, ordered=True)
    assert list(refused(graph)) == ["fc"]


def test_an_exported_network_is_not_silently_empty() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    graph = layer_graph(torch.export.export(network, (torch.zeros(2, 3, 8, 8),)).module())
    assert graph.layers == ()
    assert [remark.path for remark in graph.uncovered] == ["0.weight"]


def test_a_bare_tensor_without_a_path() -> None:
    graph = of_tensors({"weight": torch.ones(2, 4), "bias": torch.ones(2)}, ordered=True)
    assert [(layer.path, layer.weight, layer.bias) for layer in graph.layers] == [("", "weight", "bias")]


def test_a_network_and_its_file_agree_on_where_the_channels_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    by_file, by_network = of_tensors(model.state_dict(), ordered=True), layer_graph(model)
    assert by_file.pairs == by_network.pairs == {"0": "1"}
    assert [x.out_channels for x in by_file.layers] == [x.out_channels for x in by_network.layers]
