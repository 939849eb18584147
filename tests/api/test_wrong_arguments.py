"""What the Python functions answer when they are handed something else than they take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import unbackdoor as ub


def _net() -> nn.Module:
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(8, 4))


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a method's class": (lambda: ub.scan(_net(), method=ub.LPP), r"write LPP\(\)"),
    "no method": (lambda: ub.scan(_net(), method=3), "expected a defence"),
    "an unknown method": (lambda: ub.scan(_net(), method="lpq"), "did you mean 'lpp'"),
    "no defence": (lambda: ub.defend("m.pt", method=None), "expected a defence"),
    "no attack": (lambda: ub.evaluate(_net(), attack=3), "expected an attack"),
    "a setting out of range": (lambda: ub.evaluate(_net(), attack="badnet:size=0"), "size"),
    "no data set": (lambda: ub.evaluate(_net(), data=3), "data: expected a data set's name"),
    "a file that is a number": (lambda: ub.load(3), "expected the path of a model file"),
    "a method that is a number": (lambda: ub.parse_method(3), "expected a name"),
    "an attack that is a number": (lambda: ub.parse_attack(3), "expected a name"),
    "no network": (lambda: ub.LPP()(None), "expected a network"),
    "no graph": (lambda: ub.LPP().plan(_net(), graph=3), "expected a LayerGraph"),
    "images for a method without": (lambda: ub.LPP()(_net(), torch.zeros(1, 3, 8, 8)), "lpp uses no images"),
    "labels for a method without": (lambda: ub.CLP().plan(_net(), labels=torch.zeros(1)), "clp uses no images"),
    "an architecture that is a number": (lambda: ub.load_model("m.pt", arch=3), "arch: expected a name"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_a_wrong_argument_is_refused_in_plain_words(case: str) -> None:
    call, expected = WRONG[case]
    with pytest.raises(ub.UnbackdoorError, match=expected):
        call()


def test_a_method_may_be_named() -> None:
    net = _net()
    assert ub.scan(net, method="clp:u=2").settings["u"] == 2.0
    assert ub.scan(net, method="lpp").to_json() == ub.scan(net).to_json()
