"""What a layer's channels are: answers of the network, gates of other channels, or hidden ones that can be cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.defences.data_free import LPP
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph import layer_graph

IMAGE = torch.zeros(2, 3, 8, 8)
BOTH = pytest.mark.parametrize("example", [None, IMAGE], ids=["fx", "export"])

Forward = Callable[..., Any]


class Net(nn.Module):
    """Convolutions a to e of 8 channels, norms na to ne, Linears f and g, and a forward pass over them.

    All but `a`, which reads the image, take and give 8 channels.
    """

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        for name in "abcde":
            self.add_module(name, nn.Conv2d(3 if name == "a" else 8, 8, 3, padding=1))
            self.add_module(f"n{name}", nn.BatchNorm2d(8))
        self.f, self.g = nn.Linear(8, 4), nn.Linear(8, 4)
        self.run = forward
        self.t = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def answers(forward: Forward, example: Any = None) -> str:
    """The answer layers' names in one word, each found to be one in the layer too."""
    graph = layer_graph(Net(forward), example)
    assert {layer.path for layer in graph.layers if layer.part == "answer"} == set(graph.outputs)
    return "".join(sorted(graph.outputs))


def parts(forward: Forward, example: Any = None) -> dict[str, str]:
    """Layer -> part, without the hidden ones."""
    return by_part(layer_graph(Net(forward), example))


def by_part(graph: LayerGraph) -> dict[str, str]:
    return {layer.path: layer.part for layer in graph.layers if layer.part != "hidden"}


class Result(NamedTuple):
    first: Tensor
    second: Any


@dataclasses.dataclass
class Record:
    first: Tensor
    second: Any


class Output(dict):  # type: ignore[type-arg]
    """A dictionary that is an object too, as other libraries return it."""


# Answers.

_PLAIN: dict[str, tuple[Forward, str]] = {
    "concatenated": (lambda s, x: torch.cat([s.b(h := s.a(x).relu()), s.c(h)], 1), "bc"),
    "summed": (lambda s, x: s.b(h := s.a(x).relu()) + s.c(h), "bc"),
    "averaged": (lambda s, x: (s.b(h := s.a(x).relu()) + s.c(h)) / 2, "bc"),
    "stacked": (lambda s, x: torch.stack([s.b(h := s.a(x).relu()), s.c(h)]).mean(0), "bc"),
    "multiplied": (lambda s, x: s.b(h := s.a(x).relu()) * s.c(h).sigmoid(), "bc"),
    "added to the input": (lambda s, x: s.b(s.a(x).relu())[:, :3] + x, "b"),
    "interpolated": (lambda s, x: F.interpolate(s.b(s.a(x).relu()), scale_factor=2.0), "b"),
    "skips of FCN-8s": (
        lambda s, x: F.interpolate(s.d(F.max_pool2d(h := s.a(x).relu(), 2)), scale_factor=2.0) + s.c(h),
        "cd",
    ),
    "pixel shuffle": (lambda s, x: F.pixel_shuffle(s.b(s.a(x).relu()), 2), "b"),
    "tanh": (lambda s, x: torch.tanh(s.b(s.a(x).relu())), "b"),
    "log_softmax of a mean, with a temperature": (
        lambda s, x: F.log_softmax(s.b(s.a(x).relu()).mean((2, 3)) / s.t, 1),
        "b",
    ),
    "division by data": (lambda s, x: s.b(h := s.a(x).relu()) / (1 + s.c(h).abs()), "bc"),
    "NiN: convolution, norm, ReLU, pooling": (
        lambda s, x: F.adaptive_avg_pool2d(s.nb(s.b(s.a(x).relu())).relu(), 1).flatten(1),
        "b",
    ),
    "a loop over levels": (
        lambda s, x: torch.cat(
            [m(h).view(2, 4, 2, -1).permute(0, 1, 3, 2).flatten(1, 2) for h in (s.a(x).relu(),) for m in (s.b, s.c)], 1
        ).sigmoid(),
        "bc",
    ),
    "logits beside features": (lambda s, x: (s.f((h := s.na(s.a(x)).relu()).mean((2, 3))), h), "f"),
    "logits beside features without a norm": (lambda s, x: (s.f((h := s.a(x).relu()).mean((2, 3))), h), "af"),
    "shares of classes, as detectors of sounds put them out": (
        lambda s, x: (
            (p := (c := s.b(h := s.na(s.a(x)).relu())).softmax(1))[:, :1] * p[:, 1:].sum(1, keepdim=True),
            c,
            h,
        ),
        "b",
    ),
    "residual features": (lambda s, x: (h := s.na(s.a(x)).relu()) + s.nb(s.b(h)), "b"),
    "an answer in a dictionary in a list": (lambda s, x: [{"x": (s.b(h := s.a(x).relu()), {"y": s.c(h)})}], "bc"),
    "the input itself beside it": (lambda s, x: (x, s.b(s.a(x).relu())), "b"),
    "sizes of features": (lambda s, x: s.f((h := s.a(x).relu()).mean((2, 3))) * h.shape[2], "f"),
    "the better of two": (lambda s, x: torch.maximum(s.b(h := s.a(x).relu()), s.c(h)), "bc"),
    "chosen by another layer": (
        lambda s, x: torch.gather(s.b(h := s.a(x).relu()), 1, s.c(h).argmax(1, keepdim=True)),
        "bc",
    ),
    "a norm that no single layer feeds": (lambda s, x: s.nb(s.b(h := s.a(x).relu()) + s.c(h)), "bc"),
}


@BOTH
@pytest.mark.parametrize("ending", list(_PLAIN))
def test_answers_are_followed_back_from_the_result(ending: str, example: Tensor | None) -> None:
    forward, expected = _PLAIN[ending]
    assert answers(forward, example) == expected


_CONTAINERS: dict[str, Forward] = {
    "tuple": lambda *values: values,
    "list": lambda *values: list(values),
    "dict": lambda first, second: {"first": first, "second": second},
    "NamedTuple": Result,
    "dataclass": Record,
    "object that is a dict": lambda first, second: Output(first=first, second=second),
    "NamedTuple in a dict": lambda first, second: {"x": Result(first, {"y": second})},
    "dataclass in a tuple": lambda first, second: (first, Record(second, 3)),
    "dataclass in a NamedTuple": lambda first, second: Result(first, Record(second, None)),
}


@pytest.mark.parametrize("container", list(_CONTAINERS))
def test_every_container_holds_values_of_its_own(container: str) -> None:
    """Two answers and, where they are beside features, still the two answers."""
    pack = _CONTAINERS[container]
    assert answers(lambda s, x: pack(s.b(h := s.na(s.a(x)).relu()).softmax(1), s.c(h).relu())) == "bc"
    assert answers(lambda s, x: pack(s.b(h := s.na(s.a(x)).relu()), h)) == "b"


def test_a_value_written_into_a_buffer_is_followed() -> None:
    """torch.fx cannot follow an assignment to a part of a tensor; torch.export can."""

    def forward(s: Net, x: Tensor) -> Tensor:
        out = torch.zeros(2, 12)
        h = s.a(x).relu().mean((2, 3))
        out[:, :4] = s.f(h)
        out[:, 4:8].copy_(s.g(h))
        return out

    assert answers(forward, IMAGE) == "fg"
    assert answers(forward) == "fg"


@BOTH
def test_a_value_changed_in_place_is_followed(example: Tensor | None) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        h = s.a(x).relu()
        out = s.b(h)
        part = out.view(2, 4, 2, 8, 8)
        part.add_(s.c(h).view(2, 4, 2, 8, 8))
        return out.sigmoid_()

    assert answers(forward, example) == "bc"


@BOTH
def test_the_classifier_is_the_one_answer_without_a_norm(example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: s.f(s.na(s.a(x)).relu().mean((2, 3)))), example)
    assert (graph.classifier, graph.outputs, by_part(graph)) == ("f", ("f",), {"f": "answer"})
    assert {norm.part for norm in graph.norms.values()} == {"hidden"}
    graph = layer_graph(Net(_PLAIN["NiN: convolution, norm, ReLU, pooling"][0]), example)
    assert (graph.classifier, graph.outputs) == (None, ("b",))
    assert graph.norms["nb"].part == "answer"


# Which answers are classes.

_CLASSES: dict[str, Forward] = {
    "plain": lambda s, x: s.f(x),
    "shares with a temperature": lambda s, x: (s.f(x) / s.t).softmax(1),
    "a clamp and a name": lambda s, x: {"logits": s.f(x).clamp(-9, 9)},
    "mean of two crops": lambda s, x: (s.f(x) + s.f(x.flip(1))) / 2,
    "the best class": lambda s, x: s.f(x).argmax(1),
}
_NO_CLASSES: dict[str, Forward] = {
    "squared distance": lambda s, x: ((s.f(x) - s.f(x.flip(1))) ** 2).sum(1),
    "product of two": lambda s, x: s.f(x) * s.f(x.flip(1)),
    "cosine": lambda s, x: F.cosine_similarity(s.f(x), s.f(x.flip(1))),
    "pairwise distance": lambda s, x: F.pairwise_distance(s.f(x), s.f(x.flip(1))),
    "distances of a batch": lambda s, x: torch.cdist(s.f(x), s.f(x)),
    "unit length": lambda s, x: F.normalize(s.f(x)),
    "unit length by hand": lambda s, x: (h := s.f(x)) / h.norm(dim=1, keepdim=True),
    "its own products": lambda s, x: (h := s.f(x)) @ h.T,
    "a sum": lambda s, x: s.f(x).sum(1),
}


def _pooled(s: Net, x: Tensor) -> Tensor:
    return s.na(s.a(x)).relu().mean((2, 3))


@BOTH
@pytest.mark.parametrize("case", list(_CLASSES))
def test_rows_that_are_handed_on_are_classes(case: str, example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: _CLASSES[case](s, _pooled(s, x))), example)
    assert (graph.classifier, graph.no_classes) == ("f", "")


@BOTH
@pytest.mark.parametrize("case", list(_NO_CLASSES))
def test_rows_of_an_embedding_are_no_classes(case: str, example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: _NO_CLASSES[case](s, _pooled(s, x))), example)
    assert (graph.classifier, graph.outputs) == (None, ("f",))
    assert "not one number per class" in graph.no_classes


@BOTH
def test_a_map_of_answers_is_no_classifier_and_a_pooled_one_is(example: Tensor | None) -> None:
    def head(s: Net, x: Tensor) -> Tensor:
        return s.b(s.na(s.a(x)).relu())

    assert layer_graph(Net(head), example).no_classes == "its output is a map, not one number per class"
    assert layer_graph(Net(lambda s, x: F.interpolate(head(s, x), scale_factor=2.0)), example).classifier is None
    assert layer_graph(Net(lambda s, x: head(s, x).mean((2, 3))), example).classifier == "b"
    pooled = layer_graph(Net(lambda s, x: F.adaptive_avg_pool2d(head(s, x).relu(), 1).flatten(1)), example)
    assert pooled.classifier == "b"


@BOTH
def test_features_that_are_put_out_beside_logits_are_said(example: Tensor | None) -> None:
    """They are read by weights as well, so that they are hidden channels; a reader of the features should know."""
    graph = layer_graph(Net(lambda s, x: (s.f((h := s.na(s.a(x)).relu()).mean((2, 3))), h)), example)
    assert graph["a"].part == "hidden"
    assert "the network also returns its result" in graph["a"].note
    assert graph["f"].note == ""
    plain = layer_graph(Net(lambda s, x: s.f(s.na(s.a(x)).relu().mean((2, 3)))), example)
    assert plain["a"].note == ""


# Channels that are normalised together.

_TOGETHER: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "GroupNorm": (lambda: nn.GroupNorm(2, 8), "coupled"),
    "GroupNorm of single channels": (lambda: nn.GroupNorm(8, 8), "coupled"),
    "InstanceNorm": (lambda: nn.InstanceNorm2d(8, affine=True), "coupled"),
    "LayerNorm": (lambda: nn.LayerNorm([8, 8, 8]), "coupled"),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3), "coupled"),
    "RMSNorm": (lambda: nn.RMSNorm([8, 8, 8]), "coupled"),
    "BatchNorm of the batch": (lambda: nn.BatchNorm2d(8, track_running_stats=False), "coupled"),
}


@BOTH
@pytest.mark.parametrize("case", list(_TOGETHER))
def test_channels_that_are_normalised_together_are_left_alone(case: str, example: Tensor | None) -> None:
    """Without one of them the others move, or it comes out as the norm's bias."""
    norm, part = _TOGETHER[case]

    class Normed(Net):
        def __init__(self) -> None:
            super().__init__(lambda s, x: s.f(s.extra(s.a(x)).relu().mean((2, 3))))
            self.extra = norm()

    layer = layer_graph(Normed(), example)["a"]
    if case == "LocalResponseNorm" and example is not None:  # torch.export sees a division
        assert layer.part == "gate"
    else:
        assert layer.part == part
        assert "normalises it by its current statistics" in layer.why


@BOTH
def test_a_residual_stream_is_normalised_with_all_that_was_added(example: Tensor | None) -> None:
    """A block's last layer adds to what the next LayerNorm reads; its first one is read by weights alone."""

    def forward(s: Net, x: Tensor) -> Tensor:
        h = s.a(x)
        h = h + s.c(s.b(F.layer_norm(h, (8, 8, 8))).relu())
        return s.f(F.layer_norm(h, (8, 8, 8)).mean((2, 3)))

    assert parts(forward, example) == {"a": "coupled", "c": "coupled", "f": "answer"}


def test_a_network_of_group_norms_is_left_alone_and_said() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.GroupNorm(4, 32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)
    )
    with torch.no_grad():
        net[0].weight[5] *= 20
    outcome = LPP()(net)
    assert outcome.report.layers == ()
    assert outcome.report.gap == "no layer of the network was scored"
    assert torch.equal(outcome.model[0].weight, net[0].weight)
    assert any("normalises it by its current statistics" in remark.reason for remark in outcome.report.left_alone)


#: What is computed along the channels of `b`, which gives (N, 8, 8, 8).
_BESIDE: dict[str, Forward] = {
    "normalize": lambda s, x: F.normalize(s.b(s.a(x))),
    "normalize behind ReLU and pooling": lambda s, x: F.normalize(F.max_pool2d(s.b(s.a(x)).relu(), 3, 1, 1), dim=1),
    "divided by its length": lambda s, x: (h := s.b(s.a(x))) / h.norm(dim=1, keepdim=True),
    "divided by its length and an eps": lambda s, x: (h := s.b(s.a(x))) / h.norm(dim=1, keepdim=True).clamp(min=1e-6),
    "divided by a length and a number": lambda s, x: (h := s.b(s.a(x))) / (torch.linalg.vector_norm(h, 2, 1, True) + 1),
    "divided by the length of all": lambda s, x: (h := s.b(s.a(x))) / h.norm().clamp(min=1e-6),
    "PixelNorm": lambda s, x: (h := s.nb(s.b(s.a(x)))) / torch.sqrt((h**2).mean(-3, True) + 1e-8),
    "centred": lambda s, x: (h := s.b(s.a(x))) - h.mean(1, keepdim=True),
    "scaled by the mean of channels": lambda s, x: (h := s.b(s.a(x))) * h.mean(1, keepdim=True).sigmoid(),
    "cumulative": lambda s, x: s.b(s.a(x)).cumsum(1),
    "the largest": lambda s, x: s.b(s.a(x)).amax(1, keepdim=True).expand(-1, 8, -1, -1),
    "torch.max": lambda s, x: torch.max(s.b(s.a(x)), dim=1, keepdim=True)[0].expand(-1, 8, -1, -1),
    "maximum pooling of channels": lambda s, x: (
        F.max_pool1d(s.b(s.a(x)).flatten(2).transpose(1, 2), 3, 1, 1).transpose(1, 2).unflatten(2, (8, 8))
    ),
    "spread": lambda s, x: s.b(s.a(x)).std(1, keepdim=True).expand(-1, 8, -1, -1),
}


@BOTH
@pytest.mark.parametrize("case", list(_BESIDE))
def test_channels_that_are_computed_together_are_left_alone(case: str, example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: s.e(_BESIDE[case](s, x))), example)
    assert by_part(graph) == {"b": "coupled", "e": "answer"}
    assert graph["b"].why.endswith((", so zero does not switch a channel off", ", so zero moves those"))


_DECIDED: dict[str, Forward] = {
    "softmax": lambda s, x: s.b(s.a(x)).softmax(1),
    "sort": lambda s, x: s.b(s.a(x)).sort(1)[0],
    "top 8": lambda s, x: s.b(s.a(x)).topk(8, 1)[0],
    "logsumexp": lambda s, x: s.b(s.a(x)).logsumexp(1, keepdim=True).expand(-1, 8, -1, -1),
    "PixelNorm by the root's reciprocal": lambda s, x: (
        (h := s.b(s.a(x))) * (h.square().mean(1, keepdim=True) + 1e-8).rsqrt()
    ),
    "cumulative product": lambda s, x: s.b(s.a(x)).cumprod(1),
}


@BOTH
@pytest.mark.parametrize("case", list(_DECIDED))
def test_channels_that_compete_are_left_alone(case: str, example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: s.e(_DECIDED[case](s, x))), example)
    assert by_part(graph) == {"b": "gate", "e": "answer"}


_BY_THEMSELVES: dict[str, Forward] = {
    "divided by its length of places": lambda s, x: (h := s.b(s.a(x))) / h.norm(dim=(2, 3), keepdim=True).clamp(1e-6),
    "normalised over places": lambda s, x: F.normalize(s.b(s.a(x)), dim=-1),
    "cumulative over places": lambda s, x: s.b(s.a(x)).cumsum(-1),
    "the largest place": lambda s, x: s.b(s.a(x)).amax((2, 3), keepdim=True).expand(-1, -1, 8, 8),
    "centred": lambda s, x: (h := s.b(s.a(x))) - h.mean((2, 3), keepdim=True),
    "the mean of channels": lambda s, x: s.b(s.a(x)).mean(1, keepdim=True).expand(-1, 8, -1, -1),
    "pooled, and the rest": lambda s, x: F.avg_pool2d(h := s.b(s.a(x)), 3, 1, 1) - h,
}


@BOTH
@pytest.mark.parametrize("case", list(_BY_THEMSELVES))
def test_channels_that_are_computed_by_themselves_stay_hidden(case: str, example: Tensor | None) -> None:
    """A mean of channels is like a layer: one that is zero is missing from it."""
    assert parts(lambda s, x: s.e(_BY_THEMSELVES[case](s, x)), example) == {"e": "answer"}


# Curves that miss zero.

_MISSES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sigmoid": (torch.sigmoid, "sigmoid(0) = 0.5, and then e reads that"),
    "hardsigmoid": (F.hardsigmoid, "hardsigmoid(0) = 0.5, and then e reads that"),
    "softplus": (F.softplus, "softplus makes a constant of it, and then e reads that"),
    "cos": (torch.cos, "cos(0) = 1, and then e reads that"),
    "exp": (torch.exp, "exp(0) = 1, and then e reads that"),
    "a bell": (lambda h: (-(h**2)).exp(), "exp(0) = 1, and then e reads that"),
    "a power": (lambda h: 2**h, "pow makes a constant of it, and then e reads that"),
    "pooled": (lambda h: F.avg_pool2d(h.sigmoid(), 3, 1, 1).relu(), "sigmoid(0) = 0.5, and then e reads that"),
    "SiLU before it": (lambda h: (h * h.sigmoid()).cos(), "cos(0) = 1, and then e reads that"),
    "clamp": (lambda h: h.clamp(0.5, 2.0), "clamp makes a constant of it, and then e reads that"),
    "threshold": (lambda h: torch.threshold(h, 0.1, 20.0), "threshold makes a constant of it, and then e reads that"),
    "comparison": (lambda h: (h >= 0).float(), "ge makes a constant of it, and then e reads that"),
    "a number added before ReLU": (
        lambda h: (h + 3).relu(),
        "add does not map zero to zero, and then relu makes a constant of it, and then e reads that",
    ),
    "hard sigmoid written out": (
        lambda h: F.relu6(h + 3) / 6,
        "add does not map zero to zero, and then relu6 makes a constant of it, and then e reads that",
    ),
    "one of the sum's own parts": (lambda h: (h + h.relu()).cos(), "cos(0) = 1, and then e reads that"),
    "added to others": (lambda h: h.relu() + h.sigmoid(), "sigmoid(0) = 0.5, and then e reads that"),
    "Fourier features": (lambda h: torch.cat([h[:, :4].sin(), h[:, 4:].cos()], 1), "cos(0) = 1, and then e reads that"),
}


@BOTH
@pytest.mark.parametrize("normed", [False, True], ids=["bare", "BatchNorm"])
@pytest.mark.parametrize("case", list(_MISSES))
def test_a_zero_that_becomes_a_constant_by_a_curve_is_left_alone(
    case: str, normed: bool, example: Tensor | None
) -> None:
    function, why = _MISSES[case]

    def forward(s: Net, x: Tensor) -> Tensor:
        h = s.b(s.a(x).relu())
        return s.e(function(s.nb(h) if normed else h))

    graph = layer_graph(Net(forward), example)
    assert by_part(graph) == {"b": "constant", "e": "answer"}
    assert graph["b"].why == why
    assert {norm.part for norm in graph.norms.values()} == ({"constant"} if normed else set())


_THROUGH_ZERO: dict[str, Callable[[Tensor], Tensor]] = {
    **{f.__name__: f for f in (torch.relu, torch.tanh, torch.sin, torch.abs, torch.square, torch.erf, torch.asinh)},
    **{f.__name__: f for f in (F.elu, F.gelu, F.silu, F.leaky_relu, F.hardswish, F.relu6, F.mish, F.celu)},
    "square root": lambda h: h.relu().sqrt(),
    "threshold": lambda h: F.threshold(h, 0.1, 0.0),
    "threshold below zero": lambda h: F.threshold(h, -0.1, 20.0),
    "a clamp that keeps roots finite": lambda h: F.avg_pool2d(h.clamp(min=1e-6) ** 3, 3, 1, 1) ** (1 / 3),
    "a number added": lambda h: h.relu() + 1,
    "one minus it": lambda h: 1 - h.relu(),
    "torch.max": lambda h: torch.max(h, torch.zeros_like(h)),
    "torch.maximum": lambda h: torch.maximum(torch.zeros_like(h), h),
    "softplus of a gate of its own": lambda h: h * F.softplus(h).tanh(),
}


@BOTH
@pytest.mark.parametrize("case", list(_THROUGH_ZERO))
def test_a_zero_that_stays_zero_or_has_a_number_added_is_hidden(case: str, example: Tensor | None) -> None:
    assert parts(lambda s, x: s.e(_THROUGH_ZERO[case](s.b(s.a(x)))), example) == {"e": "answer"}


@BOTH
@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.e((s.b(h := s.a(x).relu()) + s.c(h)).sigmoid()),
        lambda s, x: s.e((s.b(s.a(x).relu()).mean(1, keepdim=True).sigmoid()).expand(-1, 8, -1, -1)),
        lambda s, x: s.e((s.b(s.a(x)) + s.t).relu()),
        lambda s, x: s.e(s.nc(torch.cat([(h := s.a(x))[:, :4], s.b(h)[:, :4]], 1)).relu()),
        lambda s, x: s.b(s.a(x).relu()).sigmoid(),
    ],
    ids=["a sum of layers", "a mean of channels", "a bias of its own", "a norm of several layers", "answers"],
)
def test_what_is_missing_from_a_sum_or_has_a_bias_of_the_networks_is_hidden(
    forward: Forward, example: Tensor | None
) -> None:
    assert set(parts(forward, example).values()) == {"answer"}


@BOTH
def test_one_layer_added_to_itself_has_nothing_left_where_it_is_zero(example: Tensor | None) -> None:
    forward = lambda s, x: s.e((s.b(h := s.a(x).relu()) + s.b(h.flip(3))).sigmoid())  # noqa: E731
    assert parts(forward, example) == {"b": "constant", "e": "answer"}


@BOTH
def test_channels_that_are_compared_by_their_angle_are_coupled(example: Tensor | None) -> None:
    forward = lambda s, x: s.f(F.cosine_similarity(s.b(h := s.a(x).relu()), s.c(h)).mean(2)[:, :8])  # noqa: E731
    assert parts(forward, example) == {"b": "coupled", "c": "coupled", "f": "answer"}


def test_softsign_is_a_curve_through_zero() -> None:
    """torch.export sees a division by what a zero is part of, and it is a gate there."""
    assert parts(lambda s, x: s.e(F.softsign(s.b(s.a(x))))) == {"e": "answer"}


def test_a_network_of_sigmoids_is_left_alone_and_said() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.Sigmoid(), nn.Linear(32, 4))
    with torch.no_grad():
        net[1].weight[5] *= 20
    method = LPP(layers="all")
    outcome = method(net)
    assert torch.equal(outcome.model[1].weight, net[1].weight)
    (remark,) = (remark for remark in outcome.report.left_alone if remark.path == "1")
    assert remark.reason == "zero would not switch its channels off: Sigmoid(0) = 0.5, and then 3 reads that"
    net[2] = nn.Tanh()
    assert torch.equal(method(net).model[1].weight[5], torch.zeros(12))


# Gates.

_GATES: dict[str, tuple[Forward, dict[str, str]]] = {
    "squeeze and excite": (
        lambda s, x: (h := s.na(s.a(x)).relu()) * s.c(s.b(h.mean((2, 3), keepdim=True)).relu()).sigmoid(),
        {"c": "gate"},
    ),
    "the same with a hard sigmoid, and a norm": (
        lambda s, x: F.hardsigmoid(s.nc(s.c(h := s.na(s.a(x)).relu()))) * h,
        {"c": "gate"},
    ),
    "interpolated on the way": (
        lambda s, x: (h := s.a(x).relu()) * F.interpolate(s.c(F.max_pool2d(h, 2)).sigmoid(), scale_factor=2.0),
        {"c": "gate"},
    ),
    "a gated linear unit written out": (
        lambda s, x: (y := s.b(s.a(x).relu()))[:, :4] * y[:, 4:].sigmoid(),
        {"b": "gate"},
    ),
    "a gated linear unit": (lambda s, x: F.glu(s.b(s.a(x).relu()), 1), {"b": "gate"}),
    "SwiGLU: zero in either half is zero": (lambda s, x: F.silu(s.b(h := s.a(x).relu())) * s.c(h), {}),
    "one plus it": (lambda s, x: (h := s.a(x)) * (1 + s.b(h)), {"b": "gate"}),
    "a parameter added": (lambda s, x: (h := s.a(x)) * (s.b(h) + s.t), {"b": "gate"}),
    "one minus it": (lambda s, x: (h := s.a(x)) * (1 - s.b(h)), {"b": "gate"}),
    "exp": (lambda s, x: (h := s.a(x)) * s.b(h).exp(), {"b": "gate"}),
    "a clamp away from zero": (lambda s, x: (h := s.a(x)) * s.b(h).clamp(min=0.1), {"b": "gate"}),
    "a clamp around zero": (lambda s, x: (h := s.a(x)) * s.b(h).clamp(-1, 1), {}),
    "plain product": (lambda s, x: s.b(h := s.a(x).relu()) * s.c(h), {}),
    "product of ReLUs and a constant": (lambda s, x: F.gelu(s.b(h := s.a(x))) * (2 * s.c(h)).tanh(), {}),
    "softmax over branches": (
        lambda s, x: (torch.stack([s.b(h := s.a(x)), s.c(h)]).softmax(0) * torch.stack([h, h])).sum(0),
        {"b": "gate", "c": "gate"},
    ),
    "interpolation by a weight": (lambda s, x: torch.lerp(s.b(h := s.a(x)), s.c(h), s.d(h)), {"d": "gate"}),
    "the larger of two": (lambda s, x: torch.maximum(s.b(h := s.a(x)), s.c(h)), {"b": "gate", "c": "gate"}),
    "chosen by another": (
        lambda s, x: torch.where(s.b(h := s.a(x)) > 0, s.c(h), s.d(h)),
        {"b": "gate"},
    ),
    "a gate through a second gate": (
        lambda s, x: ((s.b(h := s.a(x)) * s.c(h)).sigmoid()) * s.d(h),
        {"b": "gate", "c": "gate"},
    ),
    "a denominator": (lambda s, x: s.b(h := s.a(x)) / s.c(h), {"c": "gate"}),
    "one over it": (lambda s, x: s.b(h := s.a(x)) * s.c(h).reciprocal(), {"c": "gate"}),
    "its logarithm": (lambda s, x: s.b(s.a(x)).abs().log(), {"b": "gate"}),
    "a negative power": (lambda s, x: s.b(s.a(x)) ** -0.5, {"b": "gate"}),
    "divided by its length": (lambda s, x: (h := s.b(s.a(x))) / h.norm(dim=(2, 3), keepdim=True), {"b": "gate"}),
    "divided by its length and an eps": (
        lambda s, x: F.normalize(s.b(s.a(x)).flatten(2), dim=-1).unflatten(2, (8, 8)),
        {},
    ),
    "another norm on the way": (lambda s, x: (h := s.a(x)) * s.nc(s.b(h).relu()), {"b": "gate"}),
    "SiLU written out": (lambda s, x: (h := s.b(s.a(x))) * h.sigmoid(), {}),
    "hard swish written out": (lambda s, x: (h := s.nb(s.b(s.a(x)))) * F.relu6(h + 3) / 6, {}),
    "GELU written out": (lambda s, x: 0.5 * (h := s.b(s.a(x))) * (1 + torch.erf(h / 2**0.5)), {}),
    "SiLU written out, and then a gate": (
        lambda s, x: (h := s.b(y := s.a(x))) * h.sigmoid() * s.c(y).sigmoid(),
        {"c": "gate"},
    ),
    "leaky ReLU written out": (lambda s, x: torch.where((h := s.b(s.a(x))) > 0, h, h / 10), {}),
    "one value's gate of another place": (lambda s, x: (h := s.b(s.a(x))) * h.flip(1).sigmoid(), {"b": "gate"}),
    "one value with the mean of its places": (
        lambda s, x: (h := s.b(s.a(x))) * h.mean((2, 3), keepdim=True).sigmoid(),
        {},
    ),
    "multiplied by sizes and parameters": (lambda s, x: (s.b(s.a(x)) + s.t) * s.t * x.shape[0], {}),
    "multiplied by the input": (lambda s, x: s.b(s.a(x).relu())[:, :3].sigmoid() * x, {"b": "gate"}),
    "a bias that data make is no gate": (lambda s, x: s.b(h := s.a(x).relu()) + s.c(h), {}),
}


@BOTH
@pytest.mark.parametrize("case", list(_GATES))
def test_a_gate_is_what_zero_does_not_switch_off(case: str, example: Tensor | None) -> None:
    """The value that the case computes is read by one more layer `e`, so that nothing of it is an answer."""
    forward, expected = _GATES[case]
    graph = layer_graph(Net(lambda s, x: s.e(F.pad(forward(s, x), (0, 0, 0, 0, 0, 8 - _channels(case))))), example)
    assert by_part(graph) == {**expected, "e": "answer"}
    for layer in graph.layers:
        assert bool(layer.why) == (layer.part == "gate")


def _channels(case: str) -> int:
    return {"a gated linear unit": 4, "a gated linear unit written out": 4, "multiplied by the input": 3}.get(case, 8)


@BOTH
def test_the_reason_names_the_operations(example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: s.e((h := s.a(x)) * s.b(h).sigmoid())), example)
    assert graph["b"].why == "sigmoid does not map zero to zero, and then mul multiplies other values by it"


@BOTH
def test_a_norm_behind_a_gate_is_a_gate(example: Tensor | None) -> None:
    graph = layer_graph(Net(lambda s, x: s.e((h := s.na(s.a(x))) * s.nb(s.b(h)).sigmoid())), example)
    assert {norm.path: norm.part for norm in graph.norms.values()} == {"na": "hidden", "nb": "gate"}
    graph = layer_graph(Net(lambda s, x: s.e((h := s.na(s.a(x))) * s.nb(s.b(h).relu()).sigmoid())), example)
    assert graph.norms["nb"].part == "gate"
    assert graph.unpaired_norms == ("nb",)


# Attention.


class Attention(nn.Module):
    """Query, key and value by Linears; the product is written out, or torch's."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        heads = [layer(x).reshape(2, 5, 2, 4).permute(0, 2, 1, 3) for layer in (self.q, self.k, self.v)]
        return self.o(self.attend(*heads).transpose(1, 2).reshape(2, 5, 8))


@pytest.mark.parametrize("example", [None, torch.zeros(2, 5, 8)], ids=["fx", "export"])
@pytest.mark.parametrize(
    ("attend", "gates"),
    [
        (lambda q, k, v: (q @ k.transpose(-2, -1)).softmax(-1) @ v, ""),
        (lambda q, k, v: torch.matmul(torch.matmul(q, k.permute(0, 1, 3, 2)) / 2, v), ""),
        (lambda q, k, v: torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v), ""),
        (F.scaled_dot_product_attention, ""),
        (lambda q, k, v: ((q.transpose(-2, -1) @ k).softmax(-1) @ v.transpose(-2, -1)).transpose(-2, -1), "qk"),
        (lambda q, k, v: q @ (k.softmax(-2).transpose(-2, -1) @ v), "k"),
        (lambda q, k, v: (q.sigmoid() @ k.transpose(-2, -1)) @ v, "q"),
    ],
    ids=["written out", "without softmax", "einsum", "torch's", "between channels", "linear", "a sigmoid"],
)
def test_attention(attend: Callable[[Tensor, Tensor, Tensor], Tensor], gates: str, example: Tensor | None) -> None:
    """A channel of q or k that is zero is missing from their product's sum, unless that runs over places."""
    found = by_part(layer_graph(Attention(attend).eval(), example))
    assert found == {**dict.fromkeys(gates, "gate"), "o": "answer"}


# What is not known.


@torch.fx.wrap
def mystery(x: Tensor) -> Tensor:
    return x.sort(1).values


def test_what_an_unknown_function_reads_is_unknown() -> None:
    """It is no answer: another layer comes after it."""
    graph = layer_graph(Net(lambda s, x: s.e(mystery(s.na(s.a(x))))))
    assert by_part(graph) == {"a": "unknown", "e": "answer"}
    assert "mystery" in graph["a"].why


def test_answers_are_followed_through_an_unknown_function() -> None:
    assert answers(lambda s, x: mystery(s.b(s.na(s.a(x)).relu()))) == "b"


class Branching(Net):
    """Looks at a value: no tracer can follow."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.na(self.a(x))
        return self.f((self.nb(self.b(x)) if x.sum() > 0 else self.c(x)).mean((2, 3)))


def test_without_a_tracer_no_layer_without_a_norm_is_known() -> None:
    graph = layer_graph(Branching(lambda s, x: x))
    assert {layer.part for layer in graph.layers if layer.norm is None} <= {"unknown"}
    assert all("could not be traced" in layer.why for layer in graph.layers if layer.part == "unknown")


def test_a_result_that_cannot_be_followed_back_leaves_layers_unknown() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        s.held = s.b(s.na(s.a(x)).relu())  # type: ignore[assignment]
        return x

    graph = layer_graph(Net(forward))
    assert by_part(graph) == {"b": "unknown"}
    assert graph.outputs == ()


# Examples.


class Two(nn.Module):
    """Two inputs whose sizes it compares: torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.n = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.d, self.m = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.f = nn.Linear(16, 4)

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        if rgb.shape[0] != depth.shape[0]:
            raise ValueError("as many images as depths")
        return self.f(torch.cat([self.n(self.c(rgb)).amax((2, 3)), self.m(self.d(depth)).amax((2, 3))], 1))


_RGB, _DEPTH = torch.rand(2, 3, 16, 16), torch.rand(2, 1, 16, 16)


@pytest.mark.parametrize(
    "example",
    [(_RGB, _DEPTH), [_RGB, _DEPTH], {"rgb": _RGB, "depth": _DEPTH}, {"depth": _DEPTH, "rgb": _RGB}],
    ids=["tuple", "list", "mapping", "another order"],
)
def test_several_inputs(example: Any) -> None:
    graph = layer_graph(Two(), example)
    assert graph.pairs == {"c": "n", "d": "m"}
    assert (graph.classifier, {layer.rule for layer in graph.layers}) == ("f", {"export"})


def test_one_input_that_is_a_list() -> None:
    class OfList(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.n = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, images: list[Tensor]) -> Tensor:
            if len(images) != 2:
                raise ValueError("two images")
            return self.n(self.c(torch.stack(images)))

    assert layer_graph(OfList(), [torch.rand(3, 9, 9), torch.rand(3, 9, 9)]).pairs == {"c": "n"}


def test_a_head_whose_result_leaves_by_a_side_effect_is_not_known() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            features = self.body(x).relu()
            self.aside = self.head(features)
            return self.fc(features.mean((2, 3)))

    parts = {layer.path: layer.part for layer in layer_graph(Aside().eval()).layers}
    assert parts == {"body": "hidden", "head": "unknown", "fc": "answer"}
