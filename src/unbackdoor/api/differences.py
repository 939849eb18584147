"""`diff`: which channels differ between two files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unbackdoor import checkpoint
from unbackdoor.api.reading import dtype_name
from unbackdoor.findings import Difference


def diff(a: str | Path, b: str | Path, *, key: str | None = None) -> list[Difference]:
    """Which channels of which tensors differ, bit by bit, between two model files.

    Raises:
        CheckpointError: a file cannot be read.
    """
    left, right = checkpoint.load(a, key=key).tensors, checkpoint.load(b, key=key).tensors
    found = []
    for name in dict.fromkeys((*left, *right)):
        if name not in right or name not in left:
            found.append(Difference(name, "only in A" if name in left else "only in B"))
            continue
        x, y = left[name], right[name]
        if x.shape != y.shape:
            found.append(Difference(name, "shape", detail=f"{tuple(x.shape)} and {tuple(y.shape)}"))
        elif x.dtype != y.dtype:
            found.append(Difference(name, "dtype", detail=f"{dtype_name(x)} and {dtype_name(y)}"))
        else:
            rows = different_rows(x, y)
            if rows:
                found.append(Difference(name, "values", rows, len(x) if x.ndim else 1))
    return found


def different_rows(a: Tensor, b: Tensor) -> tuple[int, ...]:
    """First-dimension indices at which two tensors of the same shape and dtype differ, bit by bit."""
    if a.layout != torch.strided or b.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if a.numel() == 0:
        return ()
    x, y = (t.reshape(len(t), -1) if t.ndim else t.reshape(1, 1) for t in (a, b))
    if x.is_floating_point() or x.is_complex():
        x, y = x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8)
    return tuple((x != y).any(1).nonzero().flatten().tolist())
