"""Records as claims, from a real small grid to its page."""

import dataclasses
from pathlib import Path

import pytest

from bench_grids import toy
from unbackdoor.experiments import Local, Store, publish, run_grid
from unbackdoor.experiments.cell import method_origins
from unbackdoor.leaderboard import read_grids, write_report


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNBACKDOOR_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_grid_from_start_to_page(cache: Path) -> None:
    grid, store = toy(cache), Store(cache / "store")
    run_grid(grid, store, Local())
    [trained, *_] = [cell for cell in grid.cells if cell.kind == "training"]
    store.path(trained, trained.key(store.digests())).write_bytes(b"damaged")
    claimed = publish(grid, store)
    assert (claimed.cells, claimed.done, claimed.left, len(claimed.claims)) == (12, 11, 1, 11)
    store.fail(trained, trained.key(store.digests()), "no luck")
    claimed = publish(grid, store)
    assert [claim.failed for claim in claimed.failed] == ["no luck"]
    digests = store.digests()
    for cell in grid.cells:
        record = store.read(cell, cell.key(digests))
        if record is None:
            continue
        [claim] = [c for c in claimed.claims if c.key == cell.key(digests)]
        rates = record["result"]["rates"]
        assert claim.acc is not None
        assert (claim.acc.hits, claim.acc.total) == (rates["acc"]["hits"], rates["acc"]["total"])
        assert (claim.asr is None) == (rates["asr"] is None)
        assert claim.attack == (cell.needs or cell).attack or claim.attack == "none"  # type: ignore[attr-defined]
    write_report(cache / "out", [claimed])
    [back] = read_grids(cache / "out" / "claims")
    assert sorted(back.claims, key=lambda c: c.key) == sorted(claimed.claims, key=lambda c: c.key)
    assert "no luck" in (cache / "out" / "index.html").read_text()


def test_results_of_two_stores_add_up(cache: Path) -> None:
    """Each store has half of the repairs; a failure in one does not hide the other's result."""
    grid = toy(cache)
    cells = {
        name: tuple(c for c in grid.cells if c.kind == "training" or (c.title[-1] < "n") is (name == "a"))
        for name in "ab"
    }
    stores = {}
    for name in "ab":
        stores[name] = Store(cache / name)
        run_grid(dataclasses.replace(grid, cells=cells[name]), stores[name], Local())
    both = {name: publish(grid, stores[name]) for name in "ab"}
    assert 2 < both["a"].done < 12
    assert both["a"].done + both["b"].done == 14
    assert both["a"].left == 12 - both["a"].done
    assert both["a"].keys == both["b"].keys
    write_report(cache / "out", [both["a"]])
    [shown] = write_report(cache / "out", [both["b"]])
    assert (shown.done, shown.left, len(shown.claims)) == (12, 0, 12)
    [back] = read_grids(cache / "out" / "claims")
    assert back == shown
    cell = next(c for c in cells["a"] if c.kind == "repair")
    stores["b"].fail(cell, cell.key(stores["b"].digests()), "no luck")
    [shown] = write_report(cache / "out", [publish(grid, stores["b"])])
    assert (shown.done, shown.left, shown.failed) == (12, 0, ())


def test_an_empty_store_has_no_claims(cache: Path) -> None:
    grid = dataclasses.replace(toy(cache), title="nothing yet")
    claimed = publish(grid, Store(cache / "store"))
    assert (claimed.done, claimed.left, claimed.claims) == (0, 12, ())


def test_where_a_setting_comes_from_is_said() -> None:
    assert method_origins("lpp:band=0.5")["band"] == "given in the grid"
    assert method_origins("lpp")["norm"] == "default (submitted to ICLR 2025)"
    assert method_origins("lpp")["shrink_to"] == "default (this package's choice)"
    preset = method_origins("anp@backdoorbench")
    assert {key for key, origin in preset.items() if origin == "preset backdoorbench"} == {"lr", "batch_size"}
    assert preset["eps"] == "default (Wu & Wang, NeurIPS 2021)"
    assert method_origins("lpp@as_printed")["scale"] == "preset as_printed"
    assert method_origins("lpp@as_printed")["upper"] == "default (this package's choice)"
    assert method_origins("rnp")["threshold"] == "chosen on held-out clean images"
    assert method_origins("rnp:holdout=0.0")["threshold"].startswith("default")
