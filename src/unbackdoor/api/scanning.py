"""`scan`: a report on a model file or a network; nothing is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from unbackdoor.api.arguments import as_method
from unbackdoor.api.reading import case_of, open_model, with_source
from unbackdoor.defences.base import Defence
from unbackdoor.defences.data_free import LPP
from unbackdoor.errors import SettingError
from unbackdoor.findings import Report
from unbackdoor.models import Arch


def scan(
    source: str | Path | nn.Module,
    *,
    arch: str | Arch | None = None,
    method: Defence | str | None = None,
    key: str | None = None,
    example: Any = None,
) -> Report:
    """Find the outlier channels, layer by layer; changes nothing.

    Args:
        source: a model file, or a network.
        arch: the network of a file, as in `--arch`.
        method: how channels are scored and selected, or its name; None takes LPP with its defaults.
        key: which entry of a torch file to read, if there are several.
        example: an input for the network, if its layers cannot be read without one (see `layer_graph`).

    Raises:
        CheckpointError, ArchitectureError: the file cannot be read, or is not that network's.
        GraphError: the network could not be read at all.
        SettingError: the source is neither a file nor a network.
    """
    method = LPP() if method is None else as_method(method)
    if isinstance(source, nn.Module):
        return method.plan(source, example=example).report(action="scan")
    if not isinstance(source, (str, Path)):
        raise SettingError(f"scan: expected a model file or a network (torch.nn.Module), got {type(source).__name__}")
    file = open_model(source, arch=arch, key=key, example=example)
    report = method.plan_for(case_of(file, method)).report(action="scan")
    return with_source(report, file)
