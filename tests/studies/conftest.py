"""The studies are scripts that import each other by name: how tests get at them."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def study_named() -> Iterator[Callable[[str], ModuleType]]:
    """A study by the name of its script."""
    folder = str(Path(__file__).parents[2] / "studies")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)
