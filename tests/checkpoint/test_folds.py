"""Weights kept in parts: what is taken apart and put together again is what it should be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unbackdoor.checkpoint.folds import FOLDS

SHAPES = [(4, 3), (4, 3, 2), (5, 2, 3, 3), (4, 1, 3, 3)]


def _parts(kind: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).to(dtype)
    if kind == "pruning mask":
        return values, (torch.rand(shape, generator=generator) > 0.4).to(dtype)
    return torch.rand((shape[0], *(1,) * (len(shape) - 1)), generator=generator).to(dtype) + 0.1, values


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(list(FOLDS)),
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    edits=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, -2.0])), max_size=3),
)
def test_taken_apart_and_put_together(
    kind: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype, edits: list[tuple[int, float]]
) -> None:
    fold = FOLDS[kind]
    parts = _parts(kind, shape, seed, dtype)
    kept = tuple(part.clone() for part in parts)
    assert fold.fits(parts)
    old = fold.join(parts)
    new = old.clone()
    for row, factor in edits:
        new[row] *= factor
    result = fold.split(parts, new)
    assert all(torch.equal(part, before) for part, before in zip(parts, kept, strict=True))  # nothing in place
    torch.testing.assert_close(fold.join(result), new)
    for row in set(range(shape[0])) - {row for row, _ in edits}:
        assert all(torch.equal(a[row], b[row]) for a, b in zip(result, parts, strict=True))
    for row in {row for row, factor in edits if factor == 0}:
        assert not fold.join(result)[row].any()
        if old[row].any():  # a filter that was zero before is not changed
            assert not result[0][row].any()  # zero beneath the mask too; a length of zero


def test_what_a_training_moved_off_zero_leaves_the_mask() -> None:
    original, mask = torch.ones(2, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    new = torch.tensor([[0.5, 0.25], [0.0, 1.0]])
    assert [part.tolist() for part in FOLDS["pruning mask"].split((original, mask), new)] == [
        [[0.5, 0.25], [1.0, 1.0]],
        [[1.0, 1.0], [0.0, 1.0]],
    ]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 0.0])
def test_a_direction_that_is_no_number_does_not_outlive_its_filter(broken: float) -> None:
    parts = torch.ones(2, 1), torch.tensor([[1.0, 2.0], [broken, broken]])
    new = FOLDS["weight normalisation"].join(parts)
    new[1] = 0
    result = FOLDS["weight normalisation"].split(parts, new)
    assert FOLDS["weight normalisation"].join(result)[1].tolist() == [0, 0]
    assert torch.equal(result[1][0], parts[1][0])


def test_parts_that_do_not_belong_together() -> None:
    assert not FOLDS["pruning mask"].fits((torch.ones(2, 2), torch.ones(2)))
    assert not FOLDS["pruning mask"].fits((torch.ones(2), torch.tensor([0.5, 1.0])))
    assert not FOLDS["weight normalisation"].fits((torch.ones(2), torch.ones(2, 3)))
    assert not FOLDS["weight normalisation"].fits((torch.ones(()), torch.ones(2, 3)))
