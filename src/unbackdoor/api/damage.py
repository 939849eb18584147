"""`predict_damage`: what an edit costs, without an image of the data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbackdoor.api.images import check_seed, trained_on
from unbackdoor.api.reading import network_of, open_model
from unbackdoor.defender.case import Case
from unbackdoor.defender.meter import meter_images, predict
from unbackdoor.defender.on_pixels import on_pixels
from unbackdoor.errors import SettingError
from unbackdoor.findings import Damage
from unbackdoor.inputs import normalisation
from unbackdoor.models import Arch


def predict_damage(
    before: nn.Module | str | Path,
    after: nn.Module | str | Path,
    *,
    data: str | None = None,
    arch: str | Arch | None = None,
    key: str | None = None,
    example: Any = None,
    mean: Any = None,
    std: Any = None,
    output: str | None = None,
    seed: int = 0,
) -> Damage:
    """Predict how much accuracy an edit cost, from generated images alone.

    Args:
        before, after: two networks, or their files; both are left as they are.
        data: the data set that they are for, whose size and normalisation are taken; none of its images is read.
        arch: the network of files, as in `--arch`, if they do not name it.
        key: which entry of torch files to read, if there are several.
        example: an input, which says the size of the images if nothing else does.
        mean, std: of the images, one number or one a channel, for pixels from 0 to 1.
        output: which part of the networks' output is the logits: a key, a number or a field's name.
        seed: for the generated images.

    Raises:
        CheckpointError, ArchitectureError: a file cannot be read, or is not that network's.
        SettingError: a setting is out of its range, or one is a file and the other a network.
        MethodError: the size of the images is not known, or a network does not answer them.
    """
    check_seed(seed)
    given = normalisation(mean, std)
    if isinstance(before, nn.Module) != isinstance(after, nn.Module):
        kinds = " and ".join(type(one).__name__ for one in (before, after))
        raise SettingError(f"predict_damage: expected two networks or two files, got {kinds}")
    spec: object = None
    if not isinstance(before, nn.Module):
        files = [open_model(path, arch=arch, key=key, example=example) for path in (before, after)]  # type: ignore[arg-type]
        before, after = (network_of(file) for file in files)
        spec = trained_on(files[0])
    assert isinstance(after, nn.Module)
    if data is not None:
        from unbackdoor.data import dataset_spec

        spec = dataset_spec(data)
    generator = torch.Generator().manual_seed(seed)
    cases = [
        Case(network=model, example=example, spec=spec, normalisation=given, generator=generator, output=output)
        for model in (before, after)
    ]
    with cases[0].working("predict_damage") as first, cases[1].working("predict_damage") as second:
        network, note = on_pixels(cases[0], first, exact=True)
        shown = meter_images(network, generator)
        damage = predict(shown, dataclasses.replace(network, model=second.requires_grad_(False)))
    return dataclasses.replace(damage, notes=(note,))
