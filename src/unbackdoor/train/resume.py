"""The state after a full epoch, on disk: where a run that was stopped goes on."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unbackdoor.atomic import atomic_write
from unbackdoor.errors import CheckpointError


def keep(file: Path, parts: Mapping[str, Any], log: list[dict[str, Any]], identity: Mapping[str, str]) -> None:
    """Write the state, whole or not at all.

    Args:
        parts: name -> what has a `state_dict`.
        log: one entry an epoch.
        identity: what the run is, by kind ("seed", "recipe", ...): a run of another identity must not go on from here.

    Raises:
        OutputError: it cannot be written.
    """
    states = {name: part.state_dict() for name, part in parts.items()}
    with atomic_write(file, overwrite=True) as stream:
        torch.save({"states": states, "log": log, "identity": dict(identity)}, stream)


def restore(
    file: Path, parts: Mapping[str, Any], identity: Mapping[str, str], *, overwrite: bool = False
) -> list[dict[str, Any]]:
    """Put a state back, if there is one; returns its log, with one entry an epoch.

    Args:
        overwrite: whether a state that is damaged or another run's is passed over, to be replaced.

    Raises:
        CheckpointError: the state is damaged, or another run's.
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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{file}: not a state to resume from ({reason}); remove it to start afresh") from error
    different = [kind for kind in (*identity, *theirs) if identity.get(kind) != theirs.get(kind)]
    if different:
        raise CheckpointError(
            f"{file}: belongs to another run (other {', '.join(dict.fromkeys(different))}); repeat its settings, "
            "choose another folder, or start afresh with --force"
        )
    return state
