"""Grids brought to their end: resumed, shared, failing, killed."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench_grids import pictures, probes, toy, written
from unbackdoor.errors import DataError, OutputError
from unbackdoor.experiments import (
    Cell,
    Engine,
    Grid,
    Local,
    Store,
    Training,
    adopt,
    compact,
    part_of,
    publish,
    read_grid,
    run_grid,
    standing,
)
from unbackdoor.experiments.compact import row_names, rows
from unbackdoor.experiments.data_sets import check_data
from unbackdoor.experiments.engine import attempt
from unbackdoor.experiments.perform import Failed

pytest.importorskip("pyarrow")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNBACKDOOR_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_grid_from_start_to_table(cache: Path) -> None:
    grid, store = toy(cache), Store(cache / "store")
    before = standing(grid, store)
    assert (before.total, before.done, len(before.left), before.estimate) == (12, {}, 12, None)
    events = []
    found = run_grid(grid, store, Local(), on_event=lambda event, cell, text: events.append((event, cell.title, text)))
    assert found.done == {"training": 2, "repair": 10}
    assert (found.failed, found.left, found.estimate) == ({}, [], 0.0)
    assert [event for event, _, _ in events].count("done") == 12
    table = rows(grid, store)
    assert list(table[0]) == list(row_names())
    assert [one["key"] for one in table] == sorted(one["key"] for one in table)
    by_method = {one["method"]: one for one in table if one["attack"] == "badnet"}
    assert set(by_method) == {
        "none",
        "lpp",
        "clp",
        "bnp",
        "rnp:unlearn_epochs=1,recover_epochs=1,holdout=0.0",
        "ft:epochs=1",
    }
    for one in table:
        assert one["acc_total"] == 24
        assert (one["asr"] is None) == (one["attack"] == "none")
        assert one["asr_total"] == (None if one["attack"] == "none" else 16)
    assert by_method["ft:epochs=1"]["changed"] is True
    again = run_grid(grid, store, Local(), on_event=lambda *_: pytest.fail("something was run again"))
    assert again.done == found.done


def test_the_same_grid_elsewhere_gives_the_same_bytes(cache: Path) -> None:
    grid = toy(cache)
    files = []
    for name in ("one", "two"):
        store = Store(cache / name)
        run_grid(grid, store, Local())
        compact(grid, store, cache / f"{name}.parquet")
        files.append((cache / f"{name}.parquet").read_bytes())
    assert files[0] == files[1]


def test_what_a_training_needs_is_shared_by_all_of_its_repairs(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, store = toy(cache), Store(cache / "store")
    trained = []
    from unbackdoor.experiments import perform

    original = perform.train_run
    monkeypatch.setattr(perform, "train_run", lambda *a, **k: trained.append(1) or original(*a, **k))
    run_grid(grid, store, Local())
    assert len(trained) == 2


class Fragile(Local):
    """Fails whatever a test names."""

    def __init__(self, *titles: str) -> None:
        super().__init__()
        self.titles = titles

    def finished(self):
        for key, work in list(self._queue):
            self._queue.popleft()
            failed = any(title in work.cell.title for title in self.titles)
            yield key, Failed("no luck") if failed else attempt(work)


def test_a_failing_cell_is_shown_and_never_averaged_away(cache: Path) -> None:
    grid, store = toy(cache), Store(cache / "store")
    found = run_grid(grid, store, Fragile("badnet 0.2 1 epochs seed 0: lpp"))
    assert sum(found.done.values()) == 11
    ((title, reason),) = found.failed.values()
    assert title.endswith("badnet 0.2 1 epochs seed 0: lpp")
    assert reason == "no luck"
    (failed,) = (one for one in rows(grid, store) if one["state"] == "failed")
    assert (failed["method"], failed["reason"], failed["acc"]) == ("lpp", "no luck", None)
    assert sum(run_grid(grid, store, Local()).done.values()) == 11  # it is not tried again unless asked
    assert sum(run_grid(grid, store, Local(), retry_failed=True).done.values()) == 12


def test_a_fault_of_the_machine_is_no_failure_of_the_cell(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, store = probes(3), Store(cache / "store")
    from unbackdoor.experiments import engine

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/tmp/x")

    told = []
    with monkeypatch.context() as patch:
        patch.setattr(engine, "perform", full)
        found = run_grid(grid, store, Local(), on_event=lambda event, _cell, text: told.append((event, text)))
    assert (found.failed, len(found.left)) == ({}, 3)
    assert ("failed", "/tmp/x: No space left on device") in told
    assert run_grid(grid, store, Local()).done == {"probe": 3}  # the same command goes on


def test_a_killed_run_is_not_shown_as_running(cache: Path) -> None:
    grid, store = probes(2), Store(cache / "store")
    keys = [cell.key({}) for cell in grid.cells]
    (cache / "store" / "locks" / keys[0]).touch()  # as a killed process leaves it
    with store.claim(keys[1]) as mine:
        assert mine
        assert standing(grid, store).running == [grid.cells[1].title]
    assert standing(grid, store).running == []


def test_a_failed_training_blocks_its_repairs_alone(cache: Path) -> None:
    grid, store = toy(cache), Store(cache / "store")

    class NoBadnet(Fragile):
        def finished(self):
            for key, work in list(self._queue):
                self._queue.popleft()
                bad = work.cell.kind == "training" and work.cell.attack is not None
                yield key, Failed("no luck") if bad else attempt(work)

    found = run_grid(grid, store, NoBadnet())
    assert (sum(found.done.values()), len(found.failed), len(found.left), found.blocked) == (6, 1, 5, 5)


def test_what_is_known_from_elsewhere_is_not_done_again(cache: Path) -> None:
    grid, whole = toy(cache), Store(cache / "whole")
    run_grid(grid, whole, Local())
    digests = whole.digests()
    keys = {cell.title: cell.key(digests) for cell in grid.cells}
    [missing] = [title for title in keys if title.endswith("badnet 0.2 1 epochs seed 0: lpp")]
    known = set(keys.values()) - {keys[missing]}
    ran: list[str] = []
    store = Store(cache / "other")
    check_data(grid, store, None)
    before = standing(grid, store, known=known)
    assert before.left == [missing, missing.removesuffix(": lpp")]  # the network that it needs is not here
    found = run_grid(
        grid, store, Local(), known=known, on_event=lambda e, c, _t: ran.append(c.title) if e == "done" else None
    )
    assert ran == [missing.removesuffix(": lpp"), missing]
    assert (found.done, found.left) == ({"training": 2, "repair": 10}, [])
    again = run_grid(grid, store, Local(), known=set(keys.values()), on_event=lambda *_: pytest.fail("run again"))
    assert again.done == found.done


def test_another_drivers_cell_is_left_to_it(cache: Path) -> None:
    grid, store = probes(3), Store(cache / "store")
    key = grid.cells[1].key({})
    with Store(cache / "store").claim(key):
        found = run_grid(grid, store, Local())
        assert sum(found.done.values()) == 2
        assert found.running == ["probe 1"]
    assert sum(run_grid(grid, store, Local()).done.values()) == 3


def of_two_names(cache: Path) -> Grid:
    """One training and one repair, each under two names; a grid refuses the former, but its data may come in links."""
    data, arch, methods = toy(cache).data_sets[0], "resnet18:width=2", ["none", "clp", "clp:u=3"]
    grids = [
        read_grid(written(cache / "one.toml", data=data, arch=arch, attack=a, rate=0.2, epochs=1, method=methods))
        for a in ("badnet", "badnet:size=3")
    ]
    return dataclasses.replace(grids[0], cells=grids[0].cells + grids[1].cells)


@pytest.mark.parametrize("slots", [1, 8])
def test_one_cell_under_two_names_is_done_once(cache: Path, slots: int) -> None:
    grid, store, engine, seen = of_two_names(cache), Store(cache / "store"), Local(), []
    assert standing(grid, store).total == 2
    engine.slots = slots
    found = run_grid(grid, store, engine, on_event=lambda event, cell, _: event == "done" and seen.append(cell))
    assert len(grid.cells) == 6
    assert [cell.title for cell in seen] == [grid.cells[0].title, grid.cells[1].title]
    assert (found.total, found.done, found.left) == (2, {"training": 1, "repair": 1}, [])
    shown = publish(grid, store)
    assert (shown.cells, shown.done, len(shown.claims)) == (2, 2, 6)
    assert len(rows(grid, store)) == 2


def test_known_trainings_that_failed_here_are_said_and_not_begun_for_nothing(cache: Path) -> None:
    grid, store = toy(cache), Store(cache / "store")
    keys = {cell: cell.key(check_data(grid, store, None)) for cell in grid.cells}
    training, repair = grid.cells[0], grid.cells[1]
    others = {key for cell, key in keys.items() if cell is not repair}
    store.fail(training, keys[training], "ran out of memory")
    found = run_grid(grid, store, Local(), known=others)
    assert list(found.failed.values()) == [(training.title, "ran out of memory")]
    assert (found.left, found.blocked) == ([repair.title], 1)
    store.forget_failure(keys[training])
    store.fail(repair, keys[repair], "ran out of memory")
    begun: list[Cell] = []
    found = run_grid(grid, store, Local(), known=others, on_event=lambda event, cell, _: begun.append(cell))
    assert (begun, found.left, len(found.failed)) == ([], [], 1)


def test_other_data_are_refused(cache: Path) -> None:
    grid, store = toy(cache), Store(cache / "store")
    run_grid(grid, store, Local())
    (cache / "pictures" / "train" / "c0" / "0.png").write_bytes(
        (cache / "pictures" / "train" / "c1" / "0.png").read_bytes()
    )
    from unbackdoor.experiments import data_sets

    data_sets.load.cache_clear()
    data_sets.data_digest.cache_clear()
    with pytest.raises(DataError, match="holds results on another version"):
        run_grid(grid, store, Local())


def test_a_full_disk_is_one_clear_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unbackdoor.experiments import store

    monkeypatch.setattr(store, "SPACE", 2**62)
    with pytest.raises(
        OutputError, match="expected at least .* MB of free disk space, got .* finished cells are kept: free some space"
    ):
        run_grid(probes(2), Store(cache / "store"), Local())


def test_the_estimate_comes_from_like_cells(cache: Path) -> None:
    store = Store(cache / "store")
    run_grid(probes(4), store, Local())
    found = standing(probes(8), store)
    assert found.estimate == pytest.approx(found.seconds)


KILLED = """
import sys
from unbackdoor.experiments import Local, Store, read_grid, run_grid
run_grid(read_grid(sys.argv[1]), Store(sys.argv[2]), Local())
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_at_thirty_random_moments(cache: Path) -> None:
    """The same command goes on until the grid is done; the table is then that of a quiet run, byte for byte."""

    def begin(store: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", KILLED, str(cache / "toy.toml"), str(cache / store)]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def table(store: str) -> bytes:
        compact(grid, Store(cache / store), cache / "table.parquet")
        return (cache / "table.parquet").read_bytes()

    grid = toy(cache)
    started = time.monotonic()
    assert begin("quiet").wait() == 0
    whole = time.monotonic() - started
    draw, kills, stores = random.Random(0), 0, 0
    while kills < 30:
        stores += 1
        done = False
        while not done:
            process = begin(f"killed {stores}")
            try:
                process.wait(timeout=draw.uniform(0.2, whole) if kills < 30 else None)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
            done = process.wait() == 0
        assert table(f"killed {stores}") == table("quiet")
    assert sum(standing(grid, Store(cache / "quiet")).done.values()) == 12


def test_engines_are_one_interface() -> None:
    assert issubclass(Local, Engine)
    with pytest.raises(TypeError):
        Engine()


def test_runs_that_were_trained_before_are_adopted(cache: Path) -> None:
    """Networks of the zoo are cells of a small grid; what two records do not know of their recipe is at its default."""
    root = Path(__file__).parents[2]
    grid, store = read_grid(root / "grids" / "small" / "cifar10.toml"), Store(cache / "store")
    digests = dict.fromkeys(grid.data_sets, "d" * 64)
    for name, digest in digests.items():
        store.check_data(name, digest)
    folders = sorted(path.parent for path in (root / "zoo").glob("*/record.json"))
    found = adopt(grid, store, folders, digests)
    assert [cell.attack for cell in found] == ["badnet", "bpp", None, "inputaware", "wanet"]
    assert {cell.seed for cell in found} == {0}
    assert adopt(grid, store, folders, digests) == []
    for cell in found:
        record = store.read(cell, cell.key(digests))
        assert record["adopted"] is True
        assert record["result"]["rates"]["acc"]["total"] == 10_000
    with pytest.raises(DataError, match="expected a folder that unbackdoor train wrote"):
        adopt(grid, store, [cache], digests)


def test_a_grid_that_names_its_networks_trains_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unbackdoor.experiments import perform

    grid = toy(cache)
    run_grid(grid, first := Store(cache / "first"), Local())
    digests = first.digests()
    folders = []
    for cell in grid.cells:
        if isinstance(cell, Training):
            folders.append(first.folder(cell, cell.key(digests)))
            record = first.read(cell, cell.key(digests))
            record |= {**cell.config, "result": record["result"]["rates"], "attack_version": 1}
            (folders[-1] / "record.json").write_text(json.dumps(record))
    monkeypatch.setattr(perform, "train_run", lambda *_a, **_k: pytest.fail("a network was trained"))
    named = dataclasses.replace(grid, networks=tuple(folders))
    found = run_grid(named, Store(cache / "second"), Local())
    assert found.done == {"training": 2, "repair": 10}
    with pytest.raises(
        DataError, match=r"seed 0' among its networks.*the nearest is .* which has attack None instead of"
    ):
        run_grid(dataclasses.replace(grid, networks=(folders[0],)), Store(cache / "third"), Local())


def test_only_networks_that_are_there(cache: Path) -> None:
    grid, store = toy(cache), Store(cache / "store")
    assert part_of(grid, store, {}, "trained").cells == ()
    clean, attacked = [cell for cell in grid.cells if isinstance(cell, Training)]
    run_grid(dataclasses.replace(grid, cells=(clean, attacked)), store, Local())
    assert part_of(grid, store, {}, "trained").cells == grid.cells
    key = attacked.key(store.digests())
    record = store.read(attacked, key)
    assert record is not None
    files = {name: (store.folder(attacked, key) / name).read_bytes() for name in record.pop("files")}
    for hits, took in ((12, False), (13, True)):  # 75 and 81 % of 16 images
        rates = {**record["result"]["rates"], "asr": {"hits": hits, "total": 16, "value": hits / 16}}
        store.put(attacked, key, {**record, "result": {**record["result"], "rates": rates}}, files)
        part = part_of(grid, store, {}, "established")
        assert part.cells == (grid.cells if took else tuple(c for c in grid.cells if clean in (c, c.needs)))
    found = run_grid(part_of(grid, store, {}, "trained"), store, Local())
    assert found.done == {"training": 2, "repair": 10}


def test_a_method_that_makes_images_knows_their_size_and_a_record_without_recall_gets_one(cache: Path) -> None:
    data = pictures(cache / "pictures")
    path = written(
        cache / "g.toml",
        data=str(data),
        arch="resnet18:width=2",
        attack="badnet",
        rate=0.2,
        target=1,
        epochs=1,
        method=["none", "clp", "clp@auto"],
    )
    grid, store = read_grid(path), Store(cache / "store")
    training = next(cell for cell in grid.cells if isinstance(cell, Training))
    run_grid(dataclasses.replace(grid, cells=(training,)), store, Local())
    key = training.key(store.digests())
    record = store.read(training, key)
    assert record is not None
    recall = record["result"]["rates"].pop("recall")
    assert recall["total"] == 8
    files = {name: (store.folder(training, key) / name).read_bytes() for name in record.pop("files")}
    store.put(training, key, record, files)
    assert run_grid(grid, store, Local()).failed == {}
    for cell in grid.cells:
        if cell is not training:
            result = (store.read(cell, cell.key(store.digests())) or {})["result"]
            assert (result["before"]["recall"], result["rates"]["recall"]["total"]) == (recall, 8)
            assert (result["suspects"], result["story"]) == (None, [])
    claims = {claim.method: claim for claim in publish(grid, store).claims}
    assert claims["none"].recall is None
    assert claims["clp"].before["recall"].hits == recall["hits"]
