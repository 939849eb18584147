"""Every test has a cache of its own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache; it is not there yet."""
    folder = tmp_path_factory.mktemp("cache") / "unbackdoor"
    monkeypatch.setenv("UNBACKDOOR_CACHE", str(folder))
    return folder
