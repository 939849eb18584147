"""An example of what a network takes: one that its forward pass cannot be called with is refused or said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unbackdoor import CLP, LPP, channel_lipschitz, scan
from unbackdoor.errors import SettingError
from unbackdoor.graph import layer_graph

IMAGE = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.n, self.f = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        h = self.n(self.c(x)).relu().mean((2, 3))
        return self.f(h if scale is None else h * scale)


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ((IMAGE, torch.zeros(2, 8), IMAGE), "got 3 inputs: too many positional arguments"),
        ((), "got 0 inputs: missing a required argument: 'x'"),
        ({"image": IMAGE}, "got 1 input: missing a required argument: 'x'"),
        ({"x": IMAGE, "y": IMAGE}, "got 2 inputs: got an unexpected keyword argument 'y'"),
    ],
)
def test_an_example_that_the_forward_pass_does_not_take_is_refused(example: Any, said: str) -> None:
    with pytest.raises(SettingError, match=r"--input \(example=\.\.\.\): expected what Net\.forward") as caught:
        layer_graph(Net().eval(), example)
    assert str(caught.value).endswith(said)


@pytest.mark.parametrize("example", [IMAGE, (IMAGE,), [IMAGE], (IMAGE, torch.zeros(2, 8)), {"x": IMAGE}])
def test_an_example_that_it_takes_is_used(example: Any) -> None:
    graph = layer_graph(Net().eval(), example)
    assert {layer.rule for layer in graph.layers} == {"export"}
    assert not graph.aside


def test_an_example_that_the_network_cannot_run_on_is_said() -> None:
    graph = layer_graph(Net().eval(), torch.zeros(2, 1, 8, 8))
    assert graph.pairs == {"c": "n"}
    (remark,) = graph.aside
    assert (remark.path, remark.kind) == ("*", "example")
    assert "it was not used to read the network" in remark.reason


@pytest.mark.parametrize("call", [LPP(), CLP(), channel_lipschitz, scan], ids=["lpp", "clp", "scores", "scan"])
@pytest.mark.parametrize("model", [None, 3, nn.Module], ids=["None", "a number", "a class"])
def test_what_is_no_network_is_named(call: Any, model: Any) -> None:
    with pytest.raises(SettingError, match=f"expected .*network .*got {type(model).__name__}"):
        call(model)
