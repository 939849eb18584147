"""A network's inputs: their sizes as short text, `3x224x224,10:int`, and how images become what it takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
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


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """What is done to pixels in [0, 1] before a network sees them: minus the mean, divided by the deviation.

    Attributes:
        mean, std: one value for all channels, or one a channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def spec(self, shape: tuple[int, int, int]) -> InputSpec:
        """The images of a shape, normalised so.

        Raises:
            SettingError: there are neither one value nor as many as the images have channels.
        """
        return InputSpec(shape=shape, mean=_a_channel("mean", self.mean, shape), std=_a_channel("std", self.std, shape))


def normalisation(mean: object = None, std: object = None) -> Normalisation | None:
    """A normalisation from what a caller gave; None where nothing was.

    Args:
        mean, std: a number or several; of pixels from 0 to 1.

    Raises:
        SettingError: only one of the two was given, or a number is not finite or out of its range.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        one, other = ("std", "mean") if mean is None else ("mean", "std")
        raise SettingError(f"{one}: expected {other} beside it (--{other}): images are normalised by both, or by none")
    return Normalisation(
        mean=_numbers("mean", mean, "from 0", lambda x: 0 <= x <= 1),
        std=_numbers("std", std, "above 0 and up", lambda x: 0 < x <= 1),
    )


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers that commas separate.

    Args:
        option: whose value they are, for the message.
        text: what the user wrote.

    Raises:
        SettingError: the text is something else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(
            f"--{option}: expected a number, or one a channel such as 0.485,0.456,0.406, got {text!r:.60}"
        ) from error


def _numbers(name: str, given: Any, lowest: str, fits: Callable[[float], bool]) -> tuple[float, ...]:
    """One number or several, all of which fit."""
    plain = given.tolist() if hasattr(given, "tolist") else given
    values = list(plain) if isinstance(plain, tuple | list) else [plain]
    wrong = [x for x in values if isinstance(x, bool) or not isinstance(x, Real) or not fits(float(x))]
    if wrong or not values:
        raise SettingError(
            f"{name}: expected a number {lowest} to 1, or one a channel, got {(wrong or [given])[0]!r:.60}; it is of "
            "pixels from 0 to 1 (divide by 255 where they are from 0 to 255)"
        )
    return tuple(float(x) for x in values)


def _a_channel(name: str, values: tuple[float, ...], shape: tuple[int, int, int]) -> tuple[float, ...]:
    if len(values) not in (1, shape[0]):
        wanted = "1 value" if shape[0] == 1 else f"1 value or {shape[0]} (the images are {'x'.join(map(str, shape))})"
        raise SettingError(f"{name}: expected {wanted}, got {len(values)}: {','.join(f'{x:g}' for x in values)}")
    return values * shape[0] if len(values) == 1 else values


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
