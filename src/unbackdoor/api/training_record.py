"""The files in the folder of a training run."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from unbackdoor import checkpoint
from unbackdoor.atomic import atomic_write, check_target
from unbackdoor.attacks import Attack, save_attack
from unbackdoor.attacks.store import SETTINGS, TRIGGER
from unbackdoor.errors import OutputError
from unbackdoor.models import Arch
from unbackdoor.train import Epoch

MODEL, RECORD, LOG = "model.safetensors", "record.json", "log.jsonl"
#: The files of an unfinished run; a finished run in the same folder stays until it is replaced.
RESUME, PROGRESS = "resume.pt", "resume.jsonl"


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """OutputError if the folder holds a finished run that may not be replaced, or cannot be written."""
    if folder.is_dir():
        for name in (MODEL, RECORD, LOG, RESUME, PROGRESS, SETTINGS, TRIGGER):
            check_target(folder / name, overwrite=True)
    finished = (folder / RECORD).exists() or ((folder / MODEL).exists() and not (folder / RESUME).exists())
    if finished and not overwrite:
        raise OutputError(f"{folder}: already holds a finished run, which was not changed; use --force to train again")
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise OutputError(f"{folder}: cannot be made or written: {nearest} is not a writable folder")


def replace(
    folder: Path, attack: Attack | None, model: nn.Module, arch: Arch, log: list[Epoch], record: dict[str, Any]
) -> None:
    """Write a finished run, replacing an old one; the record comes last, so that it never describes another network."""
    for name in (RECORD, SETTINGS, TRIGGER):
        (folder / name).unlink(missing_ok=True)
    if attack is not None:
        save_attack(attack, folder)
    checkpoint.save(folder / MODEL, model.state_dict(), metadata={checkpoint.ARCH_KEY: str(arch)}, overwrite=True)
    write_log(folder / LOG, log)
    _write_json(folder / RECORD, record)
    for name in (RESUME, PROGRESS):
        (folder / name).unlink(missing_ok=True)


def write_log(path: Path, log: list[Epoch]) -> None:
    """Write the log, one line per epoch."""
    lines = [{key: value for key, value in dataclasses.asdict(epoch).items() if value is not None} for epoch in log]
    with atomic_write(path, overwrite=True) as stream:
        stream.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path, overwrite=True) as stream:
        stream.write((json.dumps(value, indent=2) + "\n").encode())
