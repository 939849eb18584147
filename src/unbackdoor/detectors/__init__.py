"""Passive detectors: is there a backdoor, and in which class? They need images; they repair nothing.

A file in this folder is a detector as soon as it registers itself.
"""

import importlib
import pkgutil

from unbackdoor.detectors.base import DETECTORS, Detector, parse_detector

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

__all__ = ["DETECTORS", "Detector", "parse_detector"]
