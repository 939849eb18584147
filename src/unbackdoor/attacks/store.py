"""An attack on disk: its settings in attack.json, and its trigger in attack.safetensors in the same folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from unbackdoor import checkpoint
from unbackdoor.atomic import atomic_write
from unbackdoor.attacks.base import Attack
from unbackdoor.attacks.text import describe_attack, read_attack
from unbackdoor.errors import CheckpointError, SettingError

SETTINGS, TRIGGER = "attack.json", "attack.safetensors"
_DIGEST = "trigger_sha256"


def save_attack(attack: Attack, folder: Path) -> None:
    """Write an attack's files; the trigger first, so that attack.json never names a missing one.

    Raises:
        OutputError: they cannot be written.
    """
    record = describe_attack(attack)
    if attack.tensors:
        checkpoint.save(folder / TRIGGER, attack.tensors, overwrite=True)
        record[_DIGEST] = _digest(folder / TRIGGER)
    with atomic_write(folder / SETTINGS, overwrite=True) as stream:
        stream.write((json.dumps(record, indent=2) + "\n").encode())


def load_attack(path: str | Path) -> Attack:
    """Read an attack.json, and the trigger in the same folder.

    Raises:
        SettingError: it is missing, describes no known attack, or the trigger is not the one it was saved with.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise SettingError(f"{path}: expected the attack.json of a training run, but: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{path}: expected the attack.json of a training run, found no valid JSON") from error
    if not isinstance(record, dict):
        raise SettingError(f"{path}: expected the attack.json of a training run, an object with a name")
    digest = record.pop(_DIGEST, None)
    attack = read_attack(record)
    if digest is None:
        return attack
    trigger = path.with_name(TRIGGER)
    try:
        tensors = checkpoint.load(trigger).tensors
        found = _digest(trigger)
    except (CheckpointError, OSError) as error:
        raise SettingError(f"{path}: its trigger cannot be read: {error}") from error
    if found != digest:
        raise SettingError(f"{trigger}: is not the trigger that {path.name} was saved with (its SHA-256 differs)")
    return dataclasses.replace(attack, tensors=dict(tensors))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
