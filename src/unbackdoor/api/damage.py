"""`predict_damage`: what an edit costs, without an image of the data; and the limit that a repair keeps to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbackdoor.api.images import check_seed, on_data, trained_on
from unbackdoor.api.reading import network_of, open_model
from unbackdoor.defender import meter
from unbackdoor.defender.case import Case
from unbackdoor.defender.on_pixels import on_pixels
from unbackdoor.errors import DamageError, MethodError, SettingError, UnbackdoorError
from unbackdoor.findings import Damage, Report
from unbackdoor.inputs import normalisation
from unbackdoor.models import Arch

#: Points of accuracy that a repair may be predicted to cost.
MAX_DAMAGE = 3.0


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
    generator = torch.Generator().manual_seed(seed)
    case = Case(network=before, example=example, spec=spec, normalisation=given, generator=generator, output=output)
    return _damage(on_data(case, data), after, seed=seed)


def _damage(case: Case, after: nn.Module, *, seed: int = 0, longest: float = math.inf) -> Damage:
    """What an edit of a case's network costs.

    Args:
        case: the network before.
        after: the network after.
        seed: for the generated images.
        longest: operations that this may take.

    Raises:
        MethodError: the size of the images is not known, a network does not answer them, or it takes too long.
    """
    other = dataclasses.replace(case, network=after)
    with case.working("predict_damage") as first, other.working("predict_damage") as second:
        network, note = on_pixels(case, first, exact=True)
        each = meter.effort(network)
        if each * meter.LEAST > longest:
            raise MethodError(
                f"the network is large: {meter.LEAST} generated images of each kind take {each * meter.LEAST:.1g} "
                "floating-point operations; unbackdoor diff --damage runs them all the same"
            )
        generator = torch.Generator().manual_seed(seed)
        shown = meter.meter_images(network, generator, count=meter.count_for(each))
        damage = meter.predict(shown, dataclasses.replace(network, model=second.requires_grad_(False)))
    return dataclasses.replace(damage, notes=(note,))


def check_limit(limit: float | None) -> None:
    """SettingError unless a limit is None, or a number of points from 0."""
    number = isinstance(limit, int | float) and not isinstance(limit, bool)
    if limit is not None and not (number and limit >= 0):
        raise SettingError(f"max_damage: expected points of accuracy from 0, or None, got {limit!r}")


def with_damage(report: Report, networks: Callable[[], tuple[Case, nn.Module]]) -> Report:
    """The same report with the predicted loss of accuracy, or with why it is not known.

    Args:
        report: on a repair.
        networks: returns the case before the repair, and the network after it.
    """
    try:
        return dataclasses.replace(report, damage=_damage(*networks(), longest=meter.LONGEST))
    except UnbackdoorError as error:
        return dataclasses.replace(report, damage_unknown=str(error))


def check_damage(report: Report, limit: float | None, source: str | Path) -> None:
    """DamageError if a repair is predicted to cost more than the limit."""
    if limit is not None and report.damage is not None and report.too_damaging(limit):
        raise DamageError(
            f"{source}: predicted loss of accuracy: {report.damage.summary}; at most {limit:g} are allowed, and "
            f"nothing was written; repair less (for example with a higher threshold), allow more with --max-damage "
            f"(max_damage=...), or write it all the same with --force (max_damage=inf)",
            report,
        )
