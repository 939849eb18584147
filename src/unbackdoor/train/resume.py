"""The training state after a full epoch, on disk, so that a stopped run can be resumed."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unbackdoor.atomic import atomic_write
from unbackdoor.errors import CheckpointError, first_line


def keep(file: Path, parts: Mapping[str, Any], log: list[dict[str, Any]], identity: Mapping[str, str]) -> None:
    """Write the state, completely or not at all.

    Args:
        parts: name -> an object with a `state_dict`.
        log: one entry per epoch.
        identity: what identifies the run ("seed", "recipe", ...); only a run with the same identity may resume it.

    Raises:
        OutputError: it cannot be written.
    """
    states = {name: part.state_dict() for name, part in parts.items()}
    with atomic_write(file, overwrite=True) as stream:
        torch.save({"states": states, "log": log, "identity": dict(identity)}, stream)


def restore(
    file: Path, parts: Mapping[str, Any], identity: Mapping[str, str], *, overwrite: bool = False
) -> list[dict[str, Any]]:
    """Load a state, if there is one; returns its log, with one entry per epoch.

    Args:
        overwrite: whether a state that is damaged or from another run is ignored, to be replaced.

    Raises:
        CheckpointError: the state is damaged, or from another run.
    """
    if not file.exists():
        return []
    try:
        state = _read(file, identity)
    except CheckpointError:
        if overwrite:
            return []
        raise
    for name, part in parts.items():
        part.load_state_dict(state["states"][name])
    log: list[dict[str, Any]] = state["log"]
    return log


def _read(file: Path, identity: Mapping[str, str]) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as archive:  # torch writes checksums, but does not read them
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} differs")
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        theirs = dict(state["identity"])
        _ = state["states"], state["log"]
    except Exception as error:
        raise CheckpointError(
            f"{file}: cannot be resumed from ({first_line(error)}); delete it to start again"
        ) from error
    different = [kind for kind in (*identity, *theirs) if identity.get(kind) != theirs.get(kind)]
    if different:
        raise CheckpointError(
            f"{file}: belongs to another run (different {', '.join(dict.fromkeys(different))}); use its settings, "
            "choose another folder, or start again with --force"
        )
    return state
