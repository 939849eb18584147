"""`unbackdoor bench`: run and status."""

from pathlib import Path

import pytest
from cli_runs import refuse, run

from bench_grids import toy, written


def test_run_and_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNBACKDOOR_CACHE", str(tmp_path / "cache"))
    toy(tmp_path)
    grid, store = tmp_path / "toy.toml", tmp_path / "store"
    dry = run("bench", "run", grid, "--store", store, "--dry-run")
    assert (dry.code, len(dry.out.splitlines())) == (0, 14)
    assert not store.exists()
    done = run("bench", "run", grid, "--store", store, "--quiet")
    assert (done.code, done.out[:23], done.err) == (0, "12 of 12 cells done; 0 ", "")
    status = run("bench", "status", grid, "--store", store)
    assert status.out == done.out
    wrong = written(tmp_path / "wrong.toml", data="cifar10", arch="resnet18:width=2", attack="none", recipe="quick")
    assert "unknown recipe 'quick'" in refuse("bench", "run", wrong, "--store", store)
    assert "device 'moon'" in refuse("bench", "run", grid, "--store", store, "--device", "moon")
