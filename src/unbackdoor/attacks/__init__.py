"""Backdoor attacks: one file each, one interface. A file in this folder is an attack as soon as it registers itself."""

import importlib
import pkgutil

from unbackdoor.attacks.base import (
    ATTACKS,
    Attack,
    Poisoned,
)
from unbackdoor.attacks.poisoning import DataPoisoning
from unbackdoor.attacks.store import load_attack, save_attack
from unbackdoor.attacks.text import check_target_class, describe_attack, parse_attack, presets_of, read_attack
from unbackdoor.attacks.training_control import Session, TrainingControl

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

__all__ = [
    "ATTACKS",
    "Attack",
    "DataPoisoning",
    "Poisoned",
    "Session",
    "TrainingControl",
    "check_target_class",
    "describe_attack",
    "load_attack",
    "parse_attack",
    "presets_of",
    "read_attack",
    "save_attack",
]
