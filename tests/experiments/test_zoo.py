"""The zoo's pages are those of its claims, and its grid is about the networks that are there."""

import importlib.util
from pathlib import Path
from typing import Any

from unbackdoor.experiments import Store, Training, read_grid
from unbackdoor.experiments.adopt import adopt_networks
from unbackdoor.leaderboard import read_digests, read_grids

ROOT = Path(__file__).parents[2]


def _pages() -> Any:
    spec = importlib.util.spec_from_file_location("make_readme", ROOT / "zoo" / "make_readme.py")
    assert spec is not None
    assert spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    return pages


def _older() -> set[str]:
    """Methods with figures that the page marks, as they are of older code."""
    rows = (ROOT / "zoo" / "DEFENCES.md").read_text().splitlines()
    return {
        row.split(" |")[0].removeprefix("| ").removesuffix(" †").replace(", ", "@") for row in rows if " † |" in row
    }


def test_the_pages_are_those_of_the_claims() -> None:
    pages = _pages()
    zoo = pages.Zoo()
    assert "\n".join(pages._networks(zoo)) == (ROOT / "zoo" / "README.md").read_text()
    assert "\n".join(pages._defences(zoo)) == (ROOT / "zoo" / "DEFENCES.md").read_text()


def test_every_training_of_its_grid_is_there(tmp_path: Path) -> None:
    grid, store = read_grid(ROOT / "grids" / "zoo.toml"), Store(tmp_path)
    digests = read_digests(ROOT / "zoo" / "claims")
    adopt_networks(grid, store, digests)
    trainings = [cell for cell in grid.cells if isinstance(cell, Training)]
    assert len(trainings) == len(grid.networks) == 9
    [claimed] = read_grids(ROOT / "zoo" / "claims")
    assert (claimed.cells, claimed.failed) == (len(grid.cells), ())
    today = {cell.key(digests) for cell in grid.cells}
    assert set(claimed.keys) == today
    assert {claim.method for claim in claimed.claims if claim.key not in today} == _older()
    first = (ROOT / "zoo" / "DEFENCES.md").read_text().split("## ")[1]  # a mark a figure: 5 % clean, or none given
    assert first.count(" †") == sum(
        claim.key not in today and claim.clean in (None, 0.05) and claim.data == "cifar10" for claim in claimed.claims
    )
    for cell in trainings:
        record = store.read(cell, cell.key(digests))
        [claim] = [claim for claim in claimed.own if claim.key == cell.key(digests)]
        assert claim.acc is not None
        assert record is not None
        assert claim.acc.hits == record["result"]["rates"]["acc"]["hits"]
