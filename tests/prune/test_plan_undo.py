"""A plan is applied whole or not at all, to what it was made for, and undone bit for bit."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from layer_zoo import KINDS, bits, inputs, network, same_state, snapshot
from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.errors import MethodError, PlanError
from unbackdoor.graph import layer_graph
from unbackdoor.prune import copy_model

#: Prunes and shrinks many channels of eight.
HARSH = LPP(lower=-0.5, upper=1.5, band=1.5, fc_weights=2, layers="all")
EITHER = dataclasses.replace(HARSH, norm="either")


def state_bits(model: nn.Module) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "method", [HARSH, LPP.as_printed(), EITHER, CLP(u=1.0)], ids=["lpp", "printed", "either", "clp"]
)
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "bare"])
@pytest.mark.parametrize("name", KINDS)
def test_undo_restores_every_bit(name: str, norm: bool, method: LPP | CLP) -> None:
    model = network(name, norm=norm)
    plan = method.plan(model)
    before = state_bits(model)
    plan.apply_(model)
    assert (state_bits(model) != before) == bool(plan.edits)
    plan.undo(model)
    assert state_bits(model) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("norm", [True, False])
def test_undo_restores_every_precision(dtype: torch.dtype, norm: bool) -> None:
    model = network("transposed grouped", norm=norm, dtype=dtype)
    plan = HARSH.plan(model)
    before = state_bits(model)
    plan.apply_(model)
    assert state_bits(model) != before
    plan.undo(model)
    assert state_bits(model) == before


@settings(max_examples=30, deadline=None)
@given(
    payloads=st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3),
    name=st.sampled_from(["conv2d", "conv2d with bias", "transposed grouped"]),
    norm=st.booleans(),
)
def test_undo_restores_any_bit_pattern(payloads: list[int], name: str, norm: bool) -> None:
    """Signalling NaNs, payloads, negative zeros, subnormal numbers: whatever 32 bits can say."""
    model = network(name, norm=norm)
    places = [model.layer.weight, model.norm.weight if norm else model.fc.weight, model.fc.bias]
    for tensor, payload in zip(places, payloads, strict=True):
        tensor.detach().view(-1)[1:2].view(torch.int32).fill_(payload - 2**32 if payload >= 2**31 else payload)
    before = state_bits(model)
    plan = HARSH.plan(model)
    plan.apply_(model)
    plan.undo(model)
    assert state_bits(model) == before


def test_undo_keeps_memory_formats() -> None:
    model = network("conv2d", norm=False).to(memory_format=torch.channels_last)
    model.fc.weight = nn.Parameter(torch.randn(8, 3).t())
    strides = [tensor.stride() for tensor in model.parameters()]
    assert not model.fc.weight.is_contiguous()
    assert not model.layer.weight.is_contiguous()
    before = state_bits(model)
    plan = HARSH.plan(model)
    plan.apply_(model)
    assert state_bits(model) != before
    plan.undo(model)
    assert state_bits(model) == before
    assert [tensor.stride() for tensor in model.parameters()] == strides


@pytest.mark.parametrize("name", ["conv2d", "transposed grouped", "weight_norm"])
def test_applying_twice_is_refused_and_changes_nothing(name: str) -> None:
    model = network(name)
    plan = HARSH.plan(model)
    plan.apply_(model)
    before = state_bits(model)
    with pytest.raises(PlanError, match="is not what the plan was made for; make a new plan"):
        plan.apply_(model)
    assert state_bits(model) == before


def test_undoing_what_was_not_done_is_refused_and_changes_nothing() -> None:
    model = network("conv2d")
    plan = HARSH.plan(model)
    before = state_bits(model)
    with pytest.raises(PlanError, match="is not what the plan left"):
        plan.undo(model)
    assert state_bits(model) == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: network("conv2d", seed=5), "is not what the plan was made for"),
        (lambda: network("conv2d", dtype=torch.float64), "is not what the plan was made for"),
        (lambda: network("conv2d", norm=False), "which this network does not have"),
        (lambda: network("conv2d").to("meta"), "is not what the plan was made for"),
    ],
    ids=["other weights", "other precision", "no norm", "no weights"],
)
def test_another_network_is_refused_and_left_as_it_was(other: object, message: str) -> None:
    plan, target = HARSH.plan(network("conv2d")), other()
    before = snapshot(target) if not target.fc.weight.is_meta else None
    with pytest.raises(PlanError, match=message):
        plan.apply_(target)
    assert before is None or snapshot(target) == before


@pytest.mark.parametrize("shape", [(2,), (0,), (), (8, 8)])
def test_tensors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model = network("conv2d")
    plan = HARSH.plan(model)
    target = {**model.state_dict(), "norm.bias": torch.zeros(shape)}
    before = {name: bits(tensor) for name, tensor in target.items()}
    with pytest.raises(PlanError, match=r"norm\.bias"):
        plan.apply_(target)
    assert {name: bits(tensor) for name, tensor in target.items()} == before


@pytest.mark.parametrize("position", [0, 1, -1])
def test_one_wrong_number_anywhere_stops_all(position: int) -> None:
    model = network("conv2d")
    plan = HARSH.plan(model)
    assert len(plan.edits) >= 3
    edit = plan.edits[position]
    with torch.no_grad():
        dict(model.named_parameters())[edit.name][tuple(i[:1] for i in edit.index)] += 1
    before = state_bits(model)
    with pytest.raises(PlanError, match=edit.name):
        plan.apply_(model)
    assert state_bits(model) == before


def test_a_sign_of_zero_is_a_difference() -> None:
    model = network("conv2d")
    with torch.no_grad():
        model.norm.bias.zero_()
    plan = HARSH.plan(model)
    with torch.no_grad():
        model.norm.bias.mul_(-1)
    with pytest.raises(PlanError, match=r"norm\.bias"):
        plan.apply_(model)


def test_channels_in_one_place_of_memory_are_not_written() -> None:
    model = network("conv2d")
    model.norm.bias = nn.Parameter(torch.tensor([0.25]).expand(8))
    plan = HARSH.plan(model)
    before = state_bits(model)
    with pytest.raises(
        PlanError, match=r"norm\.bias keeps several channels in one place in memory; apply the plan to a copy"
    ):
        plan.apply_(model)
    assert state_bits(model) == before
    out = HARSH(model).model.norm.bias
    assert torch.count_nonzero(out) not in (0, 8)


class ReadOnly(Tensor):
    """A tensor that finds out late that it must not be written to."""

    def __setitem__(self, index: object, value: object) -> None:
        raise RuntimeError("this memory is read-only\nand more lines")


def test_a_tensor_that_refuses_to_be_written_stops_all() -> None:
    """What was written before is put back."""
    model = network("conv2d")
    plan = HARSH.plan(model)
    names = [edit.name for edit in plan.edits]
    assert names.index("norm.weight") < names.index("norm.bias")
    target = {**model.state_dict(), "norm.bias": model.norm.bias.detach().as_subclass(ReadOnly)}
    before = state_bits(model)
    with pytest.raises(PlanError, match=r"norm\.bias cannot be written to: this memory is read-only$"):
        plan.apply_(target)
    assert state_bits(model) == before


def test_weights_made_in_inference_mode_can_be_planned_and_repaired_in_a_copy() -> None:
    with torch.inference_mode():
        model = network("conv2d")
        outcome = HARSH(model)
        assert not same_state(outcome.model, model)


def test_a_plan_fits_the_tensors_of_the_network_as_well() -> None:
    model = network("transposed grouped", norm=False)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = HARSH.plan(tensors, graph=layer_graph(model))
    plan.apply_(tensors)
    HARSH.plan(model).apply_(model)
    assert {name: bits(tensor) for name, tensor in tensors.items()} == state_bits(model)


class Tied(nn.Module):
    """Two convolutions with one weight, without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 1)
        self.conv2 = nn.Conv2d(4, 4, 1)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2.weight = self.conv1.weight
        self.norm2 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        return self.fc(torch.relu(self.norm2(self.conv2(x))).mean((2, 3)))


class TiedNorm(nn.Module):
    """One norm module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = network("conv2d").layer
        self.norm = network("conv2d").norm
        self.alias = self.norm
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.alias(self.layer(x))).mean((2, 3)))


@pytest.mark.parametrize("build", [Tied, TiedNorm])
def test_tied_tensors_stay_tied_in_the_copy(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    plan = LPP(upper=0.5, lower=-0.5).plan(model)
    assert plan.edits
    copy = copy_model(model)
    plan.apply_(copy)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    ids = [[id(dict(m.named_parameters(remove_duplicate=False))[name]) for name in names] for m in (model, copy)]
    assert [ids[0].index(one) for one in ids[0]] == [ids[1].index(one) for one in ids[1]]
    assert not set(ids[0]) & set(ids[1])


def test_tied_names_of_a_file_that_have_their_own_memory_are_all_written() -> None:
    model = TiedNorm().eval()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert tensors["norm.weight"].data_ptr() != tensors["alias.weight"].data_ptr()
    plan = HARSH.plan(tensors, graph=layer_graph(model))
    before = {name: bits(tensor) for name, tensor in tensors.items()}
    plan.apply_(tensors)
    assert bits(tensors["norm.weight"]) == bits(tensors["alias.weight"]) != before["norm.weight"]
    plan.undo(tensors)
    assert {name: bits(tensor) for name, tensor in tensors.items()} == before


@pytest.mark.parametrize("name", KINDS)
def test_copies_share_nothing_and_compute_the_same(name: str) -> None:
    model = network(name)
    model(inputs(name))  # older parametrizations now hold a computed weight
    copy = copy_model(model)
    with torch.no_grad():
        torch.testing.assert_close(copy(inputs(name)), model(inputs(name)), rtol=0, atol=0)
    mine = {tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()}
    assert not mine & {tensor.data_ptr() for tensor in copy.state_dict().values() if tensor.numel()}


def test_features_that_a_forward_pass_left_behind_are_copied() -> None:
    model = network("conv2d")
    model.seen = {"features": [model.features(inputs("conv2d"))]}
    kept = model.seen["features"][0]
    copy = copy_model(model)
    assert torch.equal(copy.seen["features"][0], kept)
    assert copy.seen["features"][0] is not kept
    assert model.seen["features"][0] is kept
    assert kept.grad_fn is not None


def test_a_plan_says_its_scores() -> None:
    model = network("conv2d")
    plan = HARSH.plan(model)
    assert list(plan.scores) == ["layer"]
    assert plan.scores["layer"].dtype == torch.float64


class TestNotes:
    """What a report says of cuts that cannot fire."""

    @staticmethod
    def notes(channels: int, **settings: float) -> tuple[str, ...]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Flatten(), nn.Linear(channels, 2))
        (layer,) = LPP(**{"fc_weights": 0, "lower": -math.inf, **settings}).plan(model).report().layers
        return layer.notes

    def test_too_few_channels_for_the_upper_cut(self) -> None:
        """One of 10 lies at most sqrt(9) = 3 deviations out; the cut must be passed, not met."""
        assert self.notes(10) == (
            "no score can exceed the upper threshold: of 10 channels, none can lie more than 3.00 standard deviations "
            "above the mean",
        )
        assert self.notes(11) == ()
        assert self.notes(10, upper=math.inf) == ()

    def test_sample_deviations_reach_less_far(self) -> None:
        """(n - 1) / sqrt(n): 11 channels reach 10 / 3.32 = 3.02, 10 reach 9 / 3.16 = 2.85."""
        assert self.notes(11, correction=1) == ()
        assert "2.85" in self.notes(10, correction=1)[0]

    def test_the_bounds_are_reached(self) -> None:
        for n in (5, 10, 11, 40):
            scores = np.zeros(n)
            scores[0] = 1.0
            assert (1 - scores.mean()) / scores.std() == pytest.approx(math.sqrt(n - 1))
            assert (1 - scores.mean()) / scores.std(ddof=1) == pytest.approx((n - 1) / math.sqrt(n))

    def test_a_lower_cut_below_zero(self) -> None:
        assert self.notes(64, lower=-100.0) == (
            "no score can be below the lower threshold: the threshold is zero or negative",
        )

    def test_one_channel(self) -> None:
        assert self.notes(1) == ("all scores are equal, so no channel can be an outlier",)

    def test_all_broken(self) -> None:
        model = network("conv2d")
        with torch.no_grad():
            model.layer.weight.fill_(math.nan)
        plan = LPP().plan(model)
        (layer,) = plan.report().layers
        assert layer.notes == ("no score is finite, so every channel is pruned",)
        assert layer.not_finite == tuple(range(8))
        assert (layer.mean, layer.std, layer.upper) == (None, None, None)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(MethodError, match=r"'layer': expected channels with a finite score, got 8 of 8 without"):
            plan.apply_(model)
        with pytest.raises(MethodError, match="the network is damaged and was not changed"):
            LPP()(model)
        after = model.state_dict()
        assert all(torch.equal(value.isnan(), after[name].isnan()) for name, value in before.items())
