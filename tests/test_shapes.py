"""The shapes that docstrings give, checked on every call: jaxtyping says them, beartype holds them."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, Int, TypeCheckError, UInt8, jaxtyped
from torch import Tensor

from unbackdoor.attacks.wanet import warp
from unbackdoor.data.augment import augment
from unbackdoor.defences.data_based.bnp import divergence, moments
from unbackdoor.defences.data_based.ep import entropy
from unbackdoor.defences.data_based.nad import attention
from unbackdoor.defences.data_free.lpp import suspicion
from unbackdoor.defender.surrogates import total_variation
from unbackdoor.findings.layers import Layer
from unbackdoor.lipschitz import filters, fold_factors, l2_norms, spectral_norms
from unbackdoor.metrics.activation_change import ranks

Shaped = Callable[..., Any]


def shaped(function: Callable[..., Any], **shapes: Any) -> Shaped:
    """The same function, whose arguments and result ("gives") are checked: one letter is one size within a call."""
    copy = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = {"return" if name == "gives" else name: kind for name, kind in shapes.items()}
    checked: Shaped = jaxtyped(typechecker=beartype)(copy)
    return checked


CONV = Layer(path="c", kind="Conv2d", out_channels=4, rule="fx", weight="c.weight")
UP = Layer(path="u", kind="ConvTranspose2d", out_channels=6, rule="fx", weight="u.weight", transposed=True, groups=2)
RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)

CALLS: dict[str, Callable[[], Any]] = {
    "filters": lambda: shaped(
        filters, weight=Float[Tensor, "out inputs height width"], gives=Float[Tensor, "out inputs height*width"]
    )(torch.rand(4, 3, 5, 2), CONV),
    "filters of a transposed one": lambda: shaped(
        filters, weight=Float[Tensor, "inputs _ height width"], gives=Float[Tensor, "6 inputs//2 height*width"]
    )(torch.rand(4, 3, 5, 2), UP),
    "l2_norms": lambda: shaped(l2_norms, weight=Float[Tensor, "out ..."], gives=Float[Tensor, "out"])(
        torch.rand(4, 3, 5, 5), CONV
    ),
    "spectral_norms": lambda: shaped(spectral_norms, weight=Float[Tensor, "out ..."], gives=Float[Tensor, "out"])(
        torch.rand(4, 3, 5, 5), CONV
    ),
    "fold_factors": lambda: shaped(
        fold_factors, gamma=Float[Tensor, "c"], var=Float[Tensor, "c"], gives=Float[Tensor, "c"]
    )(torch.rand(7), torch.rand(7), torch.tensor(1e-5), "folded"),
    "suspicion": lambda: shaped(suspicion, weight=Float[Tensor, "k f"], gives=Float[Tensor, "f"])(torch.rand(10, 6), 3),
    "divergence": lambda: shaped(divergence, **dict.fromkeys(("m1", "v1", "m2", "v2", "gives"), Float[Tensor, "c"]))(
        *torch.rand(4, 9)
    ),
    "moments": lambda: shaped(moments, x=Float[Tensor, "n c ..."], gives=Float[Tensor, "3 c"])(torch.rand(4, 9, 2, 2)),
    "entropy": lambda: shaped(entropy, features=Float[Tensor, "n c"], gives=Float[Tensor, "c"])(torch.rand(40, 9), 0.1),
    "attention": lambda: shaped(attention, maps=Float[Tensor, "n c h w"], gives=Float[Tensor, "n h w"])(
        torch.rand(2, 5, 4, 3), 2.0
    ),
    "ranks": lambda: shaped(ranks, values=Float[Tensor, "n c"], gives=Float[Tensor, "n c"])(torch.rand(3, 8)),
    "total_variation": lambda: shaped(total_variation, pixels=Float[Tensor, "n c h w"], gives=Float[Tensor, ""])(
        torch.rand(2, 3, 4, 4)
    ),
    "augment": lambda: shaped(augment, images=UInt8[Tensor, "n c h w"], gives=UInt8[Tensor, "n c h w"])(
        IMAGES, padding=2, flip=True, generator=RANDOM
    ),
    "warp": lambda: shaped(warp, images=UInt8[Tensor, "n c h w"], grid=Float[Tensor, "n h w 2"])(
        IMAGES, torch.zeros(5, 8, 8, 2)
    ),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_shapes_are_those_of_the_docstring(name: str) -> None:
    CALLS[name]()


def test_a_wrong_shape_would_be_seen() -> None:
    rows = shaped(suspicion, weight=Float[Tensor, "k f"], gives=Float[Tensor, "k"])
    with pytest.raises(TypeCheckError):
        rows(torch.rand(10, 6), 3)
    with pytest.raises(TypeCheckError):
        shaped(ranks, values=Int[Tensor, "n c"])(torch.rand(3, 8))
