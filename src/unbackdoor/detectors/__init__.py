"""Passive detectors: is there a backdoor, and in which class? They repair nothing.

A file in `data_free/` or `data_based/` is a detector as soon as it registers itself.
"""

import importlib
import pkgutil

from unbackdoor.detectors import data_based, data_free
from unbackdoor.detectors.base import DETECTORS, Detector, parse_detector

for _folder in (data_based, data_free):
    for _module in sorted(module.name for module in pkgutil.iter_modules(_folder.__path__)):
        importlib.import_module(f"{_folder.__name__}.{_module}")

__all__ = ["DETECTORS", "Detector", "parse_detector"]
