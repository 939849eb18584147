"""Random networks: modules are shared, results read twice, values changed in place; the graph is what a run shows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from graph_truth import watch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unbackdoor.graph import layer_graph

Step = tuple[str, int, int]

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu_": lambda x: x.relu_(),
    "double": lambda x: x * 2,
    "same": lambda x: x,
    "contiguous": lambda x: x.contiguous(),
    "reshape": lambda x: x.reshape(x.shape[0], -1, 2, 2),
    "shape": lambda x: x * x.shape[0],
}
_CONVS, _NORMS = ("conv0", "conv1", "conv2"), ("bn0", "bn1", "bn2", "bn3")
_MODULES = (*_CONVS, *_NORMS, "drop", "skip")


class Program(nn.Module):
    """Runs steps over a growing list of values, all of shape (N, 2, 2, 2)."""

    def __init__(self, steps: list[Step], outputs: list[int]) -> None:
        super().__init__()
        for i in range(3):
            self.add_module(f"conv{i}", nn.Conv2d(2, 2, 1, bias=i == 0))
        for i in range(4):
            self.add_module(f"bn{i}", nn.BatchNorm2d(2))
        self.drop, self.skip = nn.Dropout(0.5), nn.Identity()
        self.steps, self.outputs = steps, outputs

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x * 1]
        for name, i, j in self.steps:
            a, b = values[i % len(values)], values[j % len(values)]
            if name in _MODULES:
                values.append(getattr(self, name)(a))
            elif name == "add":
                values.append(a + b)
            elif name == "add_":
                a += b
                values.append(a)
            else:
                values.append(_UNARY[name](a))
        return tuple(values[i % len(values)] for i in self.outputs)


_place = st.sampled_from([-1, -1, -1, -1, -2, 0, 3])  # mostly the last value, as in networks
_one = st.tuples(st.sampled_from([*_MODULES, "add", "add_", *_UNARY]), _place, st.integers(0, 9)).map(
    lambda step: [step]
)
_pair = st.tuples(st.sampled_from(_CONVS), st.sampled_from(_NORMS)).map(lambda p: [(p[0], -1, 0), (p[1], -1, 0)])
_blocks = st.lists(st.one_of(_pair, _one), min_size=1, max_size=6)
_steps = _blocks.map(lambda blocks: [step for block in blocks for step in block])
programs = st.builds(Program, _steps, st.lists(st.sampled_from([-1, -1, -1, 2]), min_size=1, max_size=2))


def agree(model: nn.Module, example: Tensor | None) -> None:
    batch = torch.zeros(3, 2, 2, 2)
    truth = watch(model.eval(), batch)
    graph = layer_graph(model, example)
    assert {norm: layer for layer, norm in graph.pairs.items()} == truth.fed
    assert {layer.path for layer in graph.layers} | {remark.path for remark in graph.uncovered} == truth.layers
    assert set(graph.norms) == truth.norms
    behind = {norm for layer in graph.layers for norm in layer.behind}
    assert behind <= truth.norms - truth.fed.keys()
    assert set(graph.unpaired_norms) == truth.norms - truth.fed.keys() - behind


@settings(max_examples=300, deadline=None)
@given(programs)
def test_symbolic_tracing_sees_what_a_run_shows(model: Program) -> None:
    agree(model, None)


@settings(max_examples=15, deadline=None)
@given(programs)
def test_export_sees_what_a_run_shows(model: Program) -> None:
    agree(model, torch.zeros(3, 2, 2, 2))
