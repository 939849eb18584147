"""Random networks of layers, norms, gates and heads: what is edited is switched off, and nothing else changes.

The truth is autograd's: where every layer reads a detached value, a value depends on the weights of just those layers
that reach it past no other layer.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.findings.layers import Layer
from unbackdoor.graph import layer_graph
from unbackdoor.prune import Plan

Step = tuple[str, int, int]

Calls = dict[str, list[tuple[Tensor, Tensor]]]

#: The channel whose weights are so large that every method cuts it.
LOUD = 1
CHANNELS = 4
X = torch.randn(3, CHANNELS, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "plus one": lambda x: x + 1,
    "one minus": lambda x: 1 - x,
    "twice": lambda x: 2 * x,
    "clamp": lambda x: x.clamp(0.1, 2.0),
    "pool": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "mean": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 3),
    "softmax": lambda x: x.softmax(1),
    "glu": lambda x: torch.cat([F.glu(x, 1), F.glu(x, 1)], 1),
    "halves": lambda x: torch.cat([x[:, :2] * x[:, 2:].sigmoid(), x[:, :2]], 1),
    "flip": lambda x: x * x.flip(1).sigmoid(),
    "itself": lambda x: x * x.sigmoid(),
    "hard swish": lambda x: x * F.relu6(x + 3) / 6,
    "leaky": lambda x: torch.where(x > 0, x, 0.1 * x),
    "square": lambda x: x**2,
    "reciprocal": lambda x: 1 / x,
    "log": lambda x: x.abs().log(),
    "unit": lambda x: x / x.norm(dim=(2, 3), keepdim=True),
    "cos": torch.cos,
    "exp": lambda x: (x / 8).exp(),
    "bell": lambda x: (-(x**2)).exp(),
    "hard sigmoid": F.hardsigmoid,
    "hard sigmoid written out": lambda x: F.relu6(x + 3) / 6,
    "threshold": lambda x: F.threshold(x, 0.1, 2.0),
    "shrink": lambda x: F.threshold(x, 0.1, 0.0),
    "normalize": lambda x: F.normalize(x, dim=1),
    "normalize places": lambda x: F.normalize(x, dim=3),
    "length": lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=1e-6),
    "length of places": lambda x: x / x.norm(dim=(2, 3), keepdim=True).clamp(min=1e-6),
    "pixel norm": lambda x: x * ((x**2).mean(1, keepdim=True) + 1e-8).rsqrt(),
    "RMS norm": lambda x: F.rms_norm(x, (4, 3, 3)),
    "local response": lambda x: F.local_response_norm(x, 3),
    "centre": lambda x: x - x.mean(1, keepdim=True),
    "centre places": lambda x: x - x.mean((2, 3), keepdim=True),
    "running": lambda x: x.cumsum(1),
    "running places": lambda x: x.cumsum(3),
    "largest": lambda x: x.amax(1, keepdim=True).expand(-1, 4, -1, -1),
    "largest place": lambda x: x.amax((2, 3), keepdim=True).expand(-1, -1, 3, 3),
    "sort": lambda x: x.sort(1)[0],
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True).expand(-1, 4, -1, -1),
    "excite": lambda x: x * x.mean(1, keepdim=True).sigmoid(),
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "maximum": torch.maximum,
    "mul": lambda a, b: a * b,
    "gate": lambda a, b: a * b.sigmoid(),
    "swiglu": lambda a, b: a * F.silu(b),
    "div": lambda a, b: a / b,
    "lerp": lambda a, b: torch.lerp(a, b, b.sigmoid()),
    "where": lambda a, b: torch.where(a > 0, a, b),
}
_PRODUCTS = ("mul", "gate", "swiglu")
_CONVS, _PAIRS = ("c0", "c1", "c2"), ("p0", "p1", "p2")
_MODULES = (*_CONVS, *_PAIRS, "n")


class Result(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Record:
    first: Any
    second: Any


_CONTAINERS: dict[str, Callable[[Any, Any], Any]] = {
    "tuple": lambda a, b: (a, b),
    "dict": lambda a, b: {"a": a, "b": [b]},
    "NamedTuple": Result,
    "dataclass": Record,
    "nested": lambda a, b: {"a": Result(a, Record(b, None))},
    "one": lambda a, _: a,
}


class Program(nn.Module):
    """Runs steps over a growing list of values, all of shape (N, 4, 3, 3), and puts two of them in a container."""

    def __init__(self, steps: list[Step], container: str, ends: tuple[int, int]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(steps))
            for name in _CONVS:
                self.add_module(name, nn.Conv2d(CHANNELS, CHANNELS, 1))
            for name in _PAIRS:
                pair = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS))
                self.add_module(name, pair)
            self.n = nn.BatchNorm2d(CHANNELS)
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias)
                if isinstance(module, nn.Conv2d):
                    nn.init.uniform_(module.weight, 0.5, 1.0)  # alike, so that one alone stands out
                    with torch.no_grad():
                        module.weight[LOUD] *= 20
        self.steps, self.container, self.ends = steps, container, ends
        self.double().eval()

    def forward(self, x: Tensor) -> Any:
        return self.execute(x)

    def execute(self, x: Tensor, note: Callable[[str, Tensor, Tensor, Tensor], None] | None = None) -> Any:
        values = [x]
        for name, i, j in self.steps:
            a, b = values[i % len(values)], values[j % len(values)]
            if name in _MODULES:
                made = getattr(self, name)(a)
            else:
                made = _UNARY[name](a) if name in _UNARY else _BINARY[name](a, b)
            if note is not None:
                note(name, a, b, made)
            values.append(made)
        first, second = (values[i % len(values)] for i in self.ends)
        return _CONTAINERS[self.container](first, second)

    @property
    def layers(self) -> dict[str, nn.Conv2d]:
        return {path: m for path, m in self.named_modules() if isinstance(m, nn.Conv2d)}


_place = st.sampled_from([-1, -1, -1, -2, -2, -3, 0, 2])
_step = st.tuples(
    st.one_of(st.sampled_from(_MODULES), st.sampled_from([*_UNARY, *_BINARY]), st.sampled_from(_PRODUCTS)),
    _place,
    _place,
)
_block = st.tuples(st.sampled_from([*_CONVS, *_PAIRS]).map(lambda name: (name, -1, 0)), _step, _step)
_blocks = st.lists(_block, min_size=1, max_size=3).map(lambda blocks: [step for block in blocks for step in block])
_steps = st.tuples(_blocks, st.sampled_from([[], [("c2", -1, 0)], [("c2", -1, 0)]])).map(
    lambda parts: [*parts[0], *parts[1]]
)


def _defined(program: Program) -> bool:
    """Whether no step divides by what a ReLU made zero, or takes its logarithm."""
    flat = [False]  # of each value: whether it is zero for a whole range of inputs
    for name, i, j in program.steps:
        a, b = flat[i % len(flat)], flat[j % len(flat)]
        if (name in ("reciprocal", "log", "unit") and a) or (name == "div" and b):
            return False
        flat.append(name not in _MODULES and (name in ("relu", "hard swish") or a or (name in _BINARY and b)))
    return True


programs = st.builds(
    Program,
    _steps,
    st.sampled_from(list(_CONTAINERS)),
    st.tuples(st.sampled_from([-1, -2]), st.sampled_from([-1, -2, -4, 0])),
).filter(_defined)


@dataclasses.dataclass
class Seen:
    """What a run showed: each step's operands and result, and which layers each of them comes from directly."""

    steps: list[tuple[str, list[Tensor], list[frozenset[str]]]]
    outputs: list[Tensor]
    direct: list[frozenset[str]]


def tensors_in(value: Any) -> list[Tensor]:
    """Of any container."""
    if dataclasses.is_dataclass(value):
        return [tensor for field in dataclasses.fields(value) for tensor in tensors_in(getattr(value, field.name))]
    leaves = tree_leaves(value, is_leaf=dataclasses.is_dataclass)
    return [t for leaf in leaves for t in ([leaf] if isinstance(leaf, Tensor) else tensors_in(leaf) if leaf else [])]


def watch(model: Program, fixed: Calls | None = None, loose: str = "") -> Seen:
    """Run a network so that layers read detached values.

    Args:
        fixed: what layers read, and what they give instead of their own results, call by call, except the layer
            `loose`, which reads the same and gives its own.
    """
    handles = []
    for path, layer in model.layers.items():
        calls = iter(()) if fixed is None else iter(fixed[path])
        given: list[Tensor] = []

        def take(_m: nn.Module, args: Any, calls: Any = calls, given: list[Tensor] = given) -> tuple[Tensor]:
            read, gave = next(calls, (args[0], None))
            given[:] = [gave]
            return (read.detach(),)

        def give(_m: nn.Module, _i: Any, out: Tensor, path: str = path, given: list[Tensor] = given) -> Tensor:
            return out if given[0] is None or path == loose else given[0] + 0 * out  # still connected

        handles += [layer.register_forward_pre_hook(take), layer.register_forward_hook(give)]
    x = X.clone().requires_grad_()
    weights = {**{path: layer.weight for path, layer in model.layers.items()}, "x": x}
    steps = []

    def source(value: Tensor) -> frozenset[str]:
        if not value.requires_grad:
            return frozenset()
        grads = torch.autograd.grad(value.sum(), list(weights.values()), allow_unused=True, retain_graph=True)
        return frozenset(path for path, grad in zip(weights, grads, strict=True) if grad is not None)

    def note(name: str, a: Tensor, b: Tensor, made: Tensor) -> None:
        used = [a, b] if name in _BINARY else [a]
        steps.append((name, [*used, made], [source(value) for value in (*used, made)]))

    try:
        outputs = tensors_in(model.execute(x, note))
        return Seen(steps, outputs, [source(value) for value in outputs])
    finally:
        for handle in handles:
            handle.remove()


def calls_of(model: Program) -> Calls:
    """Layer -> what it read and gave, call by call."""
    found: Calls = {path: [] for path in model.layers}
    handles = [
        layer.register_forward_hook(lambda _m, i, out, path=path: found[path].append((i[0].detach(), out.detach())))
        for path, layer in model.layers.items()
    ]
    with torch.no_grad():
        model(X)
    for handle in handles:
        handle.remove()
    return found


def true_answers(seen: Seen, paired: set[str]) -> set[str]:
    """Layers that reach a result past no other; of those with a norm, only such as no other layer reads."""
    direct = frozenset[str]().union(*seen.direct)
    read: dict[str, set[str]] = {}
    for name, _, sources in seen.steps:
        if name in _CONVS or name in _PAIRS:
            for path in sources[0]:
                read.setdefault(path, set()).add(f"{name}.0" if name in _PAIRS else name)
    return {path for path in direct - {"x"} if path not in paired or not read.get(path, set()) - {path}}


def with_edits_of(model: Program, plan: Plan, layer: Layer) -> Program:
    """A copy in which one layer alone is edited, with its norm and those behind it."""
    edited = copy.deepcopy(model)
    tensors = {**dict(edited.named_parameters()), **dict(edited.named_buffers())}
    with torch.no_grad():
        for edit in plan.edits:
            if edit.name.rpartition(".")[0] in (layer.path, *layer.norms):
                tensors[edit.name][edit.index] = edit.after
    return edited


def scaled(model: Program, path: str, norm: str | None, by: float) -> Program:
    """A copy in which the layer's channel, behind its norm, is so many times as large."""
    copied = copy.deepcopy(model)
    last = copied.get_submodule(norm or path)
    with torch.no_grad():
        for tensor in (last.weight, last.bias):
            if isinstance(tensor, Tensor):
                tensor[LOUD] *= by
    return copied


def meets_a_norm(model: Program, step: int) -> bool:
    """Whether the first operand of a step was computed by the norm, past no layer."""
    i = model.steps[step][1] % (step + 1)
    stack, seen = [i], set()
    while stack:
        value = stack.pop()
        if value == 0 or value in seen:
            continue
        seen.add(value)
        name, a, b = model.steps[value - 1]
        if name == "n":
            return True
        if name not in (*_CONVS, *_PAIRS):
            stack += [a % value] + [b % value] * (name in _BINARY)
    return False


def check(model: Program, method: LPP | CLP) -> int:
    """Hold what a method does to a network against the truth; returns how many layers it edited."""
    graph = layer_graph(model)
    seen = watch(model)
    called = {f"{name}.0" if name in _PAIRS else name for name, _, _ in seen.steps if name in (*_CONVS, *_PAIRS)}
    unread = {remark.path for remark in graph.uncovered}
    answers = true_answers(seen, set(graph.pairs))
    assert {layer.path for layer in graph.layers} | unread == called
    assert set(graph.outputs) == answers - unread
    plan = method.plan(model, graph=graph)
    names = {edit.name.rpartition(".")[0] for edit in plan.edits}
    edited = [layer for layer in graph.layers if layer.path in names or layer.norm in names]
    assert not answers & {layer.path for layer in edited}
    before = calls_of(model)
    for layer in edited:
        _check_layer(model, plan, layer, seen, before)
    with torch.no_grad():
        repaired = tensors_in(method(model, graph=graph).model(X))
        if all(value.isfinite().all() for value in tensors_in(model(X))):
            assert all(value.isfinite().all() for value in repaired)
    return len(edited)


def _check_layer(model: Program, plan: Plan, layer: Layer, seen: Seen, before: Calls) -> None:
    """With the results of all other layers held, the layer's own channel is off and the others are as they were.

    What the next layer reads of the channel is zero. Only a constant may have been added, so that the value is linear
    in the channel's size; a norm may have made anything of it, but one that stands behind the layer makes a zero.
    """
    path, norm = layer.path, layer.norm
    last = layer.behind[-1] if layer.behind else norm
    after = watch(with_edits_of(model, plan, layer), fixed=before, loose=path)
    half = watch(scaled(model, path, last, 0.5), fixed=before, loose=path)
    rest = [j for j in range(CHANNELS) if j != LOUD]
    for step, ((name, old, sources), (_, new, _), (_, between, _)) in enumerate(
        zip(seen.steps, after.steps, half.steps, strict=True)
    ):
        if not all(value.isfinite().all() for value in old):
            continue  # zero times infinity is no number: behind 1 / relu(x) nothing can be switched off
        alone = [source == {path} for source in sources]
        if norm == "n" and name in (path, "n"):  # what only the norm reads is not the channel yet
            alone[0], alone[-1] = False, name == "n"
        if layer.behind and not meets_a_norm(model, step):  # nor what only a norm behind it reads
            alone = [False] * (len(alone) - 1) + [name == "n"]
        for was, is_, own in zip(old, new, alone, strict=True):
            if own:
                assert torch.equal(was[:, rest], is_[:, rest])
                assert torch.equal(is_[:, LOUD], is_[:1, LOUD, :1, :1].expand(3, 1, 3, 3)[:, 0])
        if name in (*_CONVS, *_PAIRS) and alone[0] and (last == "n" or not meets_a_norm(model, step)):
            read = [values[0][:, LOUD] for values in (new, between, old)]
            shift = torch.allclose(read[1], (read[0] + read[2]) / 2, rtol=1e-9, atol=1e-9)
            assert not read[0].any() or shift, f"{name} reads a constant"
        if name == (last if last == "n" else path.partition(".")[0]):
            assert not new[-1][:, LOUD].any()
        if name in _PRODUCTS and any(alone[:2]) and not alone[2]:
            assert not new[-1][:, LOUD].any(), f"{name} of {path}"
    for was, is_ in zip(seen.outputs, after.outputs, strict=True):
        assert is_.isfinite().all() or not was.isfinite().all()


_METHODS = [
    LPP(lower=-float("inf"), upper=1.0, band=0, fc_weights=0, layers="all"),
    CLP(u=1.0),
]


@pytest.mark.parametrize("method", _METHODS, ids=lambda method: method.name)
def test_what_is_edited_is_switched_off_and_answers_stay(method: LPP | CLP) -> None:
    total = 0

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(programs)
    def run(model: Program) -> None:
        nonlocal total
        total += check(model, method)

    run()
    assert total > 10


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, derandomize=True)  # the same programs in every run
@given(programs, st.sampled_from(_METHODS))
def test_the_same_of_many_more(model: Program, method: LPP | CLP) -> None:
    check(model, method)


@pytest.mark.parametrize("layer", ["c1", "p1"])
@pytest.mark.parametrize("name", list(_UNARY))
def test_every_operation_between_two_layers(name: str, layer: str) -> None:
    for method in _METHODS:
        check(Program([("p0", 0, 0), (layer, -1, 0), (name, -1, 0), ("c2", -1, 0)], "one", (-1, -1)), method)


@pytest.mark.parametrize(("name", "message"), [("cos", "c1 reads a constant"), ("normalize", ""), ("sort", "")])
def test_the_checks_can_fail_behind_a_layer(name: str, message: str) -> None:
    model = Program([("p0", 0, 0), ("c0", -1, 0), (name, -1, 0), ("c1", -1, 0)], "one", (-1, -1))
    graph = layer_graph(model)
    assert graph["c0"].part in ("constant", "coupled", "gate")
    layers = tuple(dataclasses.replace(layer, part="hidden") for layer in graph.layers if layer.path == "c0")
    plan = _METHODS[0].plan(model, graph=dataclasses.replace(graph, layers=layers, outputs=(), classifier=None))
    with pytest.raises(AssertionError, match=message):
        _check_layer(model, plan, layers[0], watch(model), calls_of(model))


def test_the_checks_can_fail_behind_a_norm() -> None:
    """A channel that was cut before a ReLU, and not behind it in the norm, too, is found out."""
    model = Program([("p0", 0, 0), ("c0", -1, 0), ("relu", -1, 0), ("n", -1, 0), ("c1", -1, 0)], "one", (-1, -1))
    graph = layer_graph(model)
    plan = _METHODS[0].plan(model, graph=graph)
    assert graph["c0"].behind == ("n",)
    _check_layer(model, plan, graph["c0"], watch(model), calls_of(model))
    less = dataclasses.replace(plan, edits=tuple(edit for edit in plan.edits if not edit.name.startswith("n.")))
    with pytest.raises(AssertionError):
        _check_layer(model, less, graph["c0"], watch(model), calls_of(model))


def test_the_checks_can_fail() -> None:
    """A squeeze-excite gate that is cut all the same is found out."""
    model = Program([("p0", 0, 0), ("c0", -1, 0), ("gate", -2, -1), ("c1", -1, 0)], "one", (-1, -1))
    graph = layer_graph(model)
    assert graph["c0"].part == "gate"
    layers = tuple(dataclasses.replace(layer, part="hidden") for layer in graph.layers if layer.path == "c0")
    plan = _METHODS[0].plan(model, graph=dataclasses.replace(graph, layers=layers, outputs=(), classifier=None))
    with pytest.raises(AssertionError, match="gate of c0"):
        _check_layer(model, plan, layers[0], watch(model), calls_of(model))
