"""`scan`: a report on a model file or a network; nothing is changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from unbackdoor.api.arguments import as_method
from unbackdoor.api.images import case_of, check_seed
from unbackdoor.api.reading import open_model, with_source
from unbackdoor.api.witnessing import witness, witness_file
from unbackdoor.defences.base import Defence
from unbackdoor.defences.data_free import LPP
from unbackdoor.defender.case import Progress, silent
from unbackdoor.errors import ArchitectureError, MethodError, SettingError
from unbackdoor.findings import Report, Witness
from unbackdoor.inputs import normalisation
from unbackdoor.models import Arch


def scan(
    source: str | Path | nn.Module,
    *,
    arch: str | Arch | None = None,
    method: Defence | str | None = None,
    key: str | None = None,
    example: Any = None,
    deep: bool = False,
    data: str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Find the outlier channels, layer by layer; changes nothing.

    Args:
        source: a model file, or a network.
        arch: the network of a file, as in `--arch`.
        method: how channels are scored and selected, or its name; None takes LPP with its defaults.
        key: which entry of a torch file to read, if there are several.
        example: an input for the network, if its layers cannot be read without one (see `layer_graph`).
        deep: whether to run the network, too, and ask the witnesses (see `witness`) for a class that is too easy to
            reach. Where they cannot look, the report says why.
        data, mean, std, seed, progress: for the witnesses.

    Raises:
        CheckpointError, ArchitectureError: the file cannot be read, or is not that network's.
        GraphError: the network could not be read at all.
        SettingError: the source is neither a file nor a network.
    """
    if deep:
        check_seed(seed)
    given = normalisation(mean, std)
    method = LPP() if method is None else as_method(method)
    if method.needs_gradients:
        raise SettingError(
            f"scan: expected a method that scores channels, got {method.name}, which tries "
            "edits; use repair --dry-run, or scan --deep"
        )
    if isinstance(source, nn.Module):
        report = method.plan(source, example=example).report(action="scan")
        if not deep:
            return report
        return _with_witness(
            report,
            lambda: witness(source, data=data, example=example, mean=mean, std=std, seed=seed, progress=progress),
        )
    if not isinstance(source, (str, Path)):
        raise SettingError(f"scan: expected a model file or a network (torch.nn.Module), got {type(source).__name__}")
    file = open_model(source, arch=arch, key=key, example=example)
    report = method.plan_for(case_of(file, method)).report(action="scan")
    report = with_source(report, file)
    if not deep:
        return report
    return _with_witness(
        report,
        lambda: witness_file(
            file, data=data, example=example, given=given, output=None, seed=seed, device="cpu", progress=progress
        ),
    )


def _with_witness(report: Report, ask: Callable[[], Witness]) -> Report:
    """The same report with what the witnesses say, or why they could not look."""
    try:
        return dataclasses.replace(report, witness=ask())
    except (ArchitectureError, MethodError) as error:
        return dataclasses.replace(report, no_witness=str(error))
