"""Layers that nobody trained: a basis laid down as a buffer, or frozen, is said and never edited."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.defences.data_free import LPP
from unbackdoor.graph import layer_graph

SOUND = torch.zeros(2, 1, 32)
BOTH = pytest.mark.parametrize("example", [None, SOUND], ids=["fx", "export"])


class Sound(nn.Module):
    """A transform `first` of sound, or a buffer `kernel`, and a small network behind it."""

    def __init__(self, first: nn.Module | None) -> None:
        super().__init__()
        self.first = first
        if first is None:
            self.register_buffer("kernel", torch.rand(8, 1, 5))
        self.c, self.n, self.f = nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.conv1d(x, self.kernel) if self.first is None else self.first(x)
        return self.f(self.n(self.c(h)).relu().mean(2))


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(requires_grad=False)


def as_buffer() -> nn.Module:
    layer = nn.Conv1d(1, 8, 5, bias=False)
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)
    return layer


def named(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(stft=layer))


_FIXED = {
    "a buffer": (lambda: Sound(None), "kernel", "is a buffer"),
    "a layer whose weight is a buffer": (lambda: Sound(as_buffer()), "first", "is a buffer"),
    "a frozen layer without bias or norm": (
        lambda: Sound(frozen(nn.Conv1d(1, 8, 5, bias=False))),
        "first",
        "only its weight takes no gradient",
    ),
    "a transform by name in a network all frozen": (
        lambda: frozen(Sound(named(nn.Conv1d(1, 8, 5, bias=False)))),
        "first.stft",
        "its name is that of",
    ),
}


@BOTH
@pytest.mark.parametrize("case", list(_FIXED))
def test_a_fixed_basis_is_said_and_left_alone(case: str, example: Tensor | None) -> None:
    build, path, reason = _FIXED[case]
    model = build().eval()
    graph = layer_graph(model, example)
    assert [layer.path for layer in graph.layers] == ["c", "f"]
    assert [(remark.path, reason in remark.reason) for remark in graph.aside] == [(path, True)]
    assert not graph.uncovered
    plan = LPP(upper=0.5, band=0).plan(model, graph=graph)
    assert plan.edits
    assert not any(edit.name.startswith(path) for edit in plan.edits)


_LEARNT = {
    "trained": lambda: Sound(named(nn.Conv1d(1, 8, 5, bias=False))),
    "frozen with all the others": lambda: frozen(Sound(nn.Conv1d(1, 8, 5, bias=False))),
    "frozen with a bias": lambda: Sound(frozen(nn.Conv1d(1, 8, 5))),
    "frozen with a norm": lambda: Sound(frozen(nn.Sequential(nn.Conv1d(1, 8, 5, bias=False), nn.BatchNorm1d(8)))),
}


@pytest.mark.parametrize("case", list(_LEARNT))
def test_a_frozen_layer_alone_is_no_basis(case: str) -> None:
    graph = layer_graph(_LEARNT[case]().eval())
    assert [layer.part for layer in graph.layers] == ["hidden", "hidden", "answer"]
