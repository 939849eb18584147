"""Weights that a file stores in several tensors (pruning masks, weight normalisation): joined, and split again.

Where a weight was not changed, splitting restores the old parts exactly. Where it was, the new parts are such that the
network computes the new weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class Fold:
    """How several tensors become one, and back.

    Attributes:
        first: pattern of the first part's name.
        whole: template of the joined tensor's name, from the groups of `first`.
        rest: for each other part, what replaces the last group of the first part's name.
        fits: whether tensors with such names really are such parts.
        join: parts -> the joined tensor.
        split: (the old parts, the new joined tensor) -> the new parts.
    """

    first: re.Pattern[str]
    whole: str
    rest: tuple[str, ...]
    fits: Callable[[Parts], bool]
    join: Callable[[Parts], Tensor]
    split: Callable[[Parts, Tensor], Parts]


def _is_mask(parts: Parts) -> bool:
    original, mask = parts
    return original.shape == mask.shape and original.is_floating_point() and bool(((mask == 0) | (mask == 1)).all())


def _masked(parts: Parts) -> Tensor:
    original, mask = parts
    return original * mask.to(original.dtype)


def _unmasked(parts: Parts, new: Tensor) -> Parts:
    """Unmask weights that are not zero now; zero the original weights of filters that became zero."""
    original, mask = parts
    old = _masked(parts)
    same = _same(old, new)
    result = torch.where(same, original, new)
    emptied = [(_rest(new, dim) == 0).all(1) & (_rest(old, dim) != 0).any(1) for dim in range(min(new.ndim, 2))]
    # Filters are rows, or columns of a transposed convolution: whichever explains more of the changes.
    explained = [int((~_rest(same, dim)[rows]).sum()) for dim, rows in enumerate(emptied)]
    if any(explained):
        dim = explained.index(max(explained))
        result.transpose(0, dim)[emptied[dim]] = 0
    return result, torch.where(new != 0, torch.ones_like(mask), mask)


def _is_weight_norm(parts: Parts) -> bool:
    length, direction = parts
    one_a_row = (*direction.shape[:1], *(1,) * (direction.ndim - 1))
    return direction.ndim > 1 and direction.is_floating_point() and length.shape == one_a_row


def _normed(parts: Parts) -> Tensor:
    length, direction = parts
    wide = torch.promote_types(direction.dtype, torch.float32)
    return torch._weight_norm(direction.to(wide), length.to(wide), 0).to(direction.dtype)


def _unnormed(parts: Parts, new: Tensor) -> Parts:
    """A changed row becomes its own direction; a row that became zero keeps its direction, with length zero."""
    length, direction = (part.clone() for part in parts)
    changed = ~_rest(_same(_normed(parts), new), 0).all(1)
    norms = torch.linalg.vector_norm(_rest(new, 0).double(), dim=1)
    length[changed] = norms[changed].to(length.dtype).view(-1, *(1,) * (length.ndim - 1))
    turned = changed & (norms != 0)
    direction[turned] = new[turned].to(direction.dtype)
    lost = changed & (norms == 0) & ~(_rest(direction, 0).isfinite().all(1) & (_rest(direction, 0) != 0).any(1))
    direction[lost] = 1  # v / |v| must be a number
    return length, direction


def _same(old: Tensor, new: Tensor) -> Tensor:
    return (old == new) | (old.isnan() & new.isnan())


def _rest(tensor: Tensor, dim: int) -> Tensor:
    """(size of that dimension, everything else)."""
    return tensor.transpose(0, dim).reshape(tensor.shape[dim], -1)


#: Patterns match the names that `spell_parametrizations` returns.
FOLDS = {
    "pruning mask": Fold(re.compile(r"(.+)(_orig)"), r"\1", ("_mask",), _is_mask, _masked, _unmasked),
    "weight normalisation": Fold(
        re.compile(r"((?:.+\.)?)parametrizations\.(\w+)\.(original0)"),
        r"\1\2",
        ("original1",),
        _is_weight_norm,
        _normed,
        _unnormed,
    ),
}
