"""`witness`: what the witnesses that need no data say of a network together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbackdoor.api.images import case_with_network, check_seed, on_data
from unbackdoor.api.reading import ModelFile, open_model
from unbackdoor.defender.case import Case
from unbackdoor.defender.look import look
from unbackdoor.defender.on_pixels import on_pixels
from unbackdoor.defender.witnessed import witnessed
from unbackdoor.errors import SettingError
from unbackdoor.findings import Witness
from unbackdoor.inputs import normalisation
from unbackdoor.models import Arch

Told = Callable[[int, int, str], None]


def witness(
    source: str | Path | nn.Module,
    *,
    data: str | None = None,
    arch: str | Arch | None = None,
    key: str | None = None,
    example: Any = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    output: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Told = lambda _done, _total, _note: None,
) -> Witness:
    """Look for a class that is too easy to reach, with the network alone, and compare it with honest networks.

    Args:
        source: a model file, or a network; it is left as it is.
        data: the data set that it is for, whose size and normalisation are taken; none of its images is read.
        arch: the network of a file, as in `--arch`, if it does not name it.
        key: which entry of a torch file to read, if there are several.
        example: an input, which says the size of the images if nothing else does.
        mean, std: of the images, one number or one a channel, for pixels from 0 to 1.
        output: which part of the network's output is the logits: a key, a number or a field's name.
        seed: for everything that is drawn.
        device: where a file's network runs.
        progress: called with (done, total, a note).

    Raises:
        CheckpointError, ArchitectureError: the file cannot be read, is not that network's, or names none.
        SettingError: a setting is out of its range.
        MethodError: the size of the images is not known, or the network does not answer them.
    """
    from unbackdoor.metrics import check_device

    check_seed(seed)
    given = normalisation(mean, std)
    if isinstance(source, nn.Module):
        generator = torch.Generator().manual_seed(seed)
        case = Case(
            network=source,
            example=example,
            normalisation=given,
            generator=generator,
            output=output,
            progress=progress,
        )
        return witness_of(case, data, seed)
    if not isinstance(source, str | Path):
        raise SettingError(
            f"witness: expected a model file or a network (torch.nn.Module), got {type(source).__name__}"
        )
    check_device(device)
    file = open_model(source, arch=arch, key=key, example=example)
    return witness_file(
        file, data=data, example=example, given=given, output=output, seed=seed, device=device, progress=progress
    )


def witness_file(
    file: ModelFile, *, data: str | None, example: Any, given: Any, output: str | None, seed: int, device: str,
    progress: Told,
) -> Witness:  # fmt: skip
    """The same, of a file that has been read; the arguments are `witness`'s, and `given` a normalisation."""
    case = case_with_network(
        file, device=device, seed=seed, example=example, output=output, progress=progress, normalisation=given
    )
    found = witness_of(case, data, seed)
    return dataclasses.replace(found, source=str(file.checkpoint.path), arch=str(file.arch))


def witness_of(case: Case, data: str | None, seed: int) -> Witness:
    """The same, of a case; its generator was made with the seed."""
    case = on_data(case, data)
    with case.working("witness") as model:
        shown, note = on_pixels(case, model)
        seen = look(shown, case.layers(), case.rng, case.progress)
        return witnessed(shown, seen, note, seed)
