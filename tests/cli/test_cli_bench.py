"""`unbackdoor bench`: run and status."""

from pathlib import Path

import pytest

from bench_grids import toy, written
from cli_runs import refuse, run


def test_run_and_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNBACKDOOR_CACHE", str(tmp_path / "cache"))
    toy(tmp_path)
    grid, store = tmp_path / "toy.toml", tmp_path / "store"
    dry = run("bench", "run", grid, "--store", store, "--dry-run")
    assert (dry.code, len(dry.out.splitlines())) == (0, 14)
    only = ("bench", "run", grid, "--store", store, "--only", "trained", "--dry-run")
    assert run(*only).out.startswith("0 of 0 cells done")
    assert not store.exists()
    done = run("bench", "run", grid, "--store", store, "--quiet")
    assert (done.code, done.out[:23], done.err) == (0, "12 of 12 cells done; 0 ", "")
    assert "12 of 12 cells done" in run(*only).out
    status = run("bench", "status", grid, "--store", store)
    assert status.out == done.out
    assert run("bench", "report", grid, "--store", store, "-o", tmp_path / "out").code == 0
    claims = tmp_path / "out" / "claims"
    other = tmp_path / "other"
    assert run("bench", "status", grid, "--store", other, "--claims", claims).out.startswith("12 of 12 cells done")
    assert "0 of 12 cells done" not in run("bench", "run", grid, "--store", other, "--claims", claims, "--dry-run").out
    assert "expected a store" in refuse("bench", "status", grid, "--store", other)
    (tmp_path / "empty").mkdir()
    assert "expected a store" in refuse("bench", "run", grid, "--store", tmp_path / "empty", "--dry-run")
    assert not other.exists()
    assert not list((tmp_path / "empty").iterdir())
    done = run("bench", "run", grid, "--store", other, "--claims", claims, "--quiet")
    assert (done.code, done.out) == (0, "12 of 12 cells done; 0 min 00 s spent\n")
    assert run("bench", "status", grid, "--store", other, "--claims", claims).out == done.out
    assert "expected claims" in refuse("bench", "run", grid, "--store", other, "--claims", tmp_path)
    assert run("bench", "report", grid, "--store", other, "-o", tmp_path / "out").err == "toy: 12 of 12 cells\n"
    wrong = written(tmp_path / "wrong.toml", data="cifar10", arch="resnet18:width=2", attack="none", recipe="quick")
    assert "unknown recipe 'quick'" in refuse("bench", "run", wrong, "--store", store)
    assert "device 'moon'" in refuse("bench", "run", grid, "--store", store, "--device", "moon")
    assert "--threads" in refuse("bench", "run", grid, "--store", store, "--threads", "-3")


def test_a_dry_run_runs_no_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("raise SystemExit('was run')\n")
    grid = written(tmp_path / "g.toml", data="cifar10", arch=f"{tmp_path}/net.py:build", attack="none")
    done = run("bench", "run", grid, "--store", tmp_path / "store", "--dry-run")
    assert done.code == 0
    assert "was run" not in done.out + done.err


def test_a_report_of_claims_and_of_what_is_none(tmp_path: Path) -> None:
    claims = tmp_path / "in" / "g"
    claims.mkdir(parents=True)
    (claims / "grid.json").write_text('{"name": "g", "title": "t", "cells": 0}')
    done = run("bench", "report", tmp_path / "in", "-o", tmp_path / "out")
    assert done.code == 0
    assert (tmp_path / "out" / "index.html").exists()
    (claims / "x.json").write_text("{}")
    assert "x.json: expected a claim" in refuse("bench", "report", tmp_path / "in", "-o", tmp_path / "out")
    assert "expected claims" in refuse("bench", "report", tmp_path, "-o", tmp_path / "new")
    assert "holds other files" in refuse("bench", "report", tmp_path / "in", "-o", tmp_path)
    grid = Path(__file__).parents[2] / "grids" / "small" / "cifar10.toml"
    said = refuse("bench", "report", grid, "--store", tmp_path / "none", "-o", tmp_path / "new")
    assert "expected a store" in said
    assert not (tmp_path / "none").exists()
