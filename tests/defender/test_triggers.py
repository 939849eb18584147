"""Triggers found by optimisation, on networks whose smallest trigger is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.triggers import (
    FORMS,
    Additive,
    Form,
    Mask,
    Patch,
    PatientAdditive,
    PatientMask,
    Trigger,
    reconstruct,
)
from unbackdoor.errors import MethodError
from unbackdoor.inputs import InputSpec

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
SHAPE = SPEC.shape


class Corner(nn.Module):
    """Class 1 if the bottom right pixels are bright, else class 0; class 2 never."""

    def forward(self, x: Tensor) -> Tensor:
        bright = 20 * (x[:, :, -2:, -2:].mean((1, 2, 3)) - 0.8)
        return torch.stack([torch.zeros_like(bright), bright, torch.full_like(bright, -100.0)], 1)


def found(kind: type[Form], label: int = 1, seed: int = 0, **more: float) -> Trigger:
    settings = {"steps": 150, "batch": 16, "success": 0.9, **more}
    pixels = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(3)) * 0.5
    return reconstruct(
        OnPixels(Corner(), SPEC), pixels, label, kind, generator=torch.Generator().manual_seed(seed), **settings
    )


@pytest.mark.parametrize("kind", [Mask, PatientMask])
def test_a_patch_is_found_where_it_is(kind: type[Form]) -> None:
    trigger = found(kind)
    assert isinstance(trigger.form, Mask)
    assert trigger.size < 8  # 4 pixels and what is left of the other 60
    stamped = trigger.form(torch.zeros(1, *SHAPE))[0]
    assert float(stamped[:, -2:, -2:].mean()) > 0.7
    assert float(stamped[:, :-2].mean()) < 0.15


def test_the_hasty_mask_is_smaller_after_few_steps() -> None:
    hasty, patient = (found(kind, steps=40).size for kind in (Mask, PatientMask))
    assert hasty < patient


@pytest.mark.parametrize("kind", [Additive, PatientAdditive])
def test_a_pattern_is_about_as_small_as_can_be(kind: type[Form]) -> None:
    """The four pixels in three colours are .25 in the mean and must be .8: about .55 each, so an L2 norm of 1.9."""
    trigger = found(kind)
    assert isinstance(trigger.form, Additive)
    assert 1.5 < trigger.size < 3


@pytest.mark.parametrize("kind", [*FORMS, Patch, PatientMask, PatientAdditive])
def test_what_is_returned_succeeds_and_has_the_size_that_it_says(kind: type[Form]) -> None:
    trigger = found(kind)
    assert trigger.form is not None
    assert float(trigger.form.size()) == pytest.approx(trigger.size, rel=1e-5)
    pixels = torch.rand(200, *SHAPE, generator=torch.Generator().manual_seed(5)) * 0.5
    assert float((Corner()(trigger.form(pixels)).argmax(1) == 1).float().mean()) > 0.7
    stamped = trigger.form(pixels)
    assert 0 <= float(stamped.min()) <= float(stamped.max()) <= 1


@pytest.mark.parametrize("kind", FORMS)
def test_a_class_that_is_never_answered(kind: type[Form]) -> None:
    trigger = found(kind, label=2, steps=10)
    assert trigger.form is None
    assert math.isinf(trigger.size)
    assert trigger.success == 0


@pytest.mark.parametrize("kind", FORMS)
def test_one_seed_gives_one_trigger(kind: type[Form]) -> None:
    assert found(kind, steps=20, success=0.0).size == found(kind, steps=20, success=0.0).size
    assert found(kind, steps=20, success=0.0).size != found(kind, steps=20, success=0.0, seed=1).size


def test_a_network_without_gradients_is_refused() -> None:
    class Silent(Corner):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    with pytest.raises(MethodError, match=r"gives none: take torch\.no_grad"):
        reconstruct(
            OnPixels(Silent(), SPEC), torch.rand(4, *SHAPE), 1, Mask, steps=1, batch=2, success=0.9,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
