"""Defences that see images: one file each. A file in this folder is a method as soon as it registers itself."""

import importlib
import pkgutil

from unbackdoor.defences.data_based.base import DataBased

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

__all__ = ["DataBased"]
