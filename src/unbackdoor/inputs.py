"""What a network takes, said in a few characters: `3x224x224`, or `3x224x224,10:int` for two inputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from unbackdoor.errors import SettingError

#: Images, tokens, ... in an example: more than one, so that no tracer takes the batch for a constant.
BATCH = 2
#: Numbers in one input; a network that takes more is not traced on an example.
MOST = 2**26
KINDS = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}
_INPUT = re.compile(r"(?P<sizes>\d{1,9}(x\d{1,9})*)(:(?P<kind>[a-z]+))?")


def parse_example(text: str) -> tuple[Tensor, ...]:
    """Zeros of the given sizes, for `layer_graph(model, example)`.

    Args:
        text: each input's sizes without the batch, joined by "x", and ":int" or ":bool" behind those that are no
            floating-point numbers; several inputs are separated by commas.

    Raises:
        SettingError: it is not of that form.
    """
    tensors = []
    for part in text.split(","):
        match = _INPUT.fullmatch(part.strip())
        kind = "" if match is None else match["kind"] or "float"
        if match is None or kind not in KINDS:
            raise SettingError(
                f"--input {text!r}: expected sizes without the batch, such as 3x32x32, several inputs separated by "
                f"commas, and :int or :bool behind one that takes these (3x224x224,10:int), got {part!r}"
            )
        sizes = [int(size) for size in match["sizes"].split("x")]
        if 0 in sizes or torch.Size(sizes).numel() > MOST:
            raise SettingError(f"--input {text!r}: expected 1 to {MOST:,} numbers an input, got {part!r}")
        tensors.append(torch.zeros(BATCH, *sizes, dtype=KINDS[kind]))
    return tuple(tensors)


def placed(example: Any, model: nn.Module) -> Any:
    """The same example on the network's device, its floating-point numbers in the network's dtype."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return tree_map_only(Tensor, lambda x: x.to(like.device, like.dtype if x.is_floating_point() else x.dtype), example)


def refuse_example(path: str | Path, example: Any) -> None:
    """SettingError where an example was given for a file that does not name its network: nothing can be run on it."""
    if example is not None:
        raise SettingError(
            f"{path}: does not say which network it is, so that nothing can be run on --input (example=...); give "
            "--arch (arch=...) beside it"
        )
