"""The sizes of a network's inputs as short text: `3x224x224`, or `3x224x224,10:int` for two inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from unbackdoor.errors import SettingError

#: Batch size of an example: more than one, so that no tracer takes the batch for a constant.
BATCH = 2
#: The most numbers that one input of an example may have.
MOST = 2**26
KINDS = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}
_INPUT = re.compile(r"(?P<sizes>\d{1,9}(x\d{1,9})*)(:(?P<kind>[a-z]+))?")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The images that a classifier takes.

    Attributes:
        shape: (channels, height, width).
        mean, std: per channel; the network takes (pixels in [0, 1] - mean) / std.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> what the network takes."""
        mean, std = (torch.tensor(values, dtype=pixels.dtype, device=pixels.device) for values in (self.mean, self.std))
        return (pixels - mean[:, None, None]) / std[:, None, None]


def parse_example(text: str) -> tuple[Tensor, ...]:
    """Zeros of the given sizes, for `layer_graph(model, example)`.

    Args:
        text: each input's sizes without the batch, joined by "x", and ":int" or ":bool" after those that are not
            floating point; several inputs are separated by commas.

    Raises:
        SettingError: the text does not have that form.
    """
    tensors = []
    for part in text.split(","):
        match = _INPUT.fullmatch(part.strip())
        kind = "" if match is None else match["kind"] or "float"
        if match is None or kind not in KINDS:
            raise SettingError(
                f"--input {text!r}: expected sizes without the batch, such as 3x32x32, got {part!r}. Separate several "
                "inputs by commas, and add :int or :bool to those that are not floating point: 3x224x224,10:int"
            )
        sizes = [int(size) for size in match["sizes"].split("x")]
        if 0 in sizes or torch.Size(sizes).numel() > MOST:
            raise SettingError(f"--input {text!r}: expected 1 to {MOST:,} numbers per input, got {part!r}")
        tensors.append(torch.zeros(BATCH, *sizes, dtype=KINDS[kind]))
    return tuple(tensors)


def placed(example: Any, model: nn.Module) -> Any:
    """The example on the network's device, with floating-point tensors in the network's dtype."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return tree_map_only(Tensor, lambda x: x.to(like.device, like.dtype if x.is_floating_point() else x.dtype), example)


def refuse_example(path: str | Path, example: Any) -> None:
    """SettingError if an example was given for a file whose network is not known, so that it cannot be run."""
    if example is not None:
        raise SettingError(
            f"{path}: --input (example=...) needs a network to run, and the file does not name one; "
            "give the network with --arch (arch=...)"
        )
