"""Records as claims, from a real small grid to its page."""

import dataclasses
from pathlib import Path

import pytest

from bench_grids import toy
from unbackdoor.bench import Local, Store, publish, run_grid
from unbackdoor.bench.cell import method_origins
from unbackdoor.report.benchmark import read_grids, write_report


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


def test_an_empty_store_has_no_claims(cache: Path) -> None:
    grid = dataclasses.replace(toy(cache), title="nothing yet")
    claimed = publish(grid, Store(cache / "store"))
    assert (claimed.done, claimed.left, claimed.claims) == (0, 12, ())


def test_where_a_setting_comes_from_is_said() -> None:
    assert method_origins("lpp:band=0.5")["band"] == "given in the grid"
    assert method_origins("lpp:band=0.5")["upper"].startswith("default")
    assert set(method_origins("anp@backdoorbench").values()) == {"preset backdoorbench"}
    assert method_origins("rnp")["threshold"] == "chosen on held-out clean images"
    assert method_origins("rnp:holdout=0.0")["threshold"].startswith("default")
