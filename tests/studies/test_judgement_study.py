"""The final tables: which networks they take, their figures by hand, and intervals against known ones."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench_grids import toy
from unbackdoor.defender import meter
from unbackdoor.experiments import Local, Store, Training, run_grid


@pytest.fixture(scope="module")
def study(study_named: Callable[[str], ModuleType]) -> ModuleType:
    return study_named("judgement")


def a_repair(method: str, network: str, *, asr: float | None, acc: float = 0.8, recall: float = 0.9) -> dict[str, Any]:
    """Of a network with an ACC of 80, an ASR of 90 and a recall of 90 %; clean where `asr` is None."""
    before, after = {"acc": 0.8}, {"acc": acc}
    if asr is not None:
        before, after = {**before, "asr": 0.9, "recall": 0.9}, {**after, "asr": asr, "recall": recall}
    attack = None if asr is None else {"name": "badnet", "target": 3, "mapping": "all-to-one"}
    about = {
        "data": "cifar10",
        "arch": "resnet18:width=8,stride=2",
        "recipe": "fast",
        "seed": 0,
        "suspects": None,
        "seconds": 1.0,
    }
    return {**about, "network": network, "attack": attack, "method": method, "before": before, "after": after}


def cells(table: str, start: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_intervals_against_known_ones(study: ModuleType) -> None:
    intervals = sys.modules["intervals"]
    # Of the textbooks: 0 of 10, 5 of 10 and 81 of 263.
    for hits, total, low, high in ((0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)):
        assert intervals.wilson(hits, total) == pytest.approx((low, high), abs=5e-5)
    assert intervals.wilson(0, 0) == (0.0, 1.0)
    low, high = intervals.bootstrap(list(range(100)), lambda drawn: sum(drawn) / 100)
    assert (low, high) == pytest.approx((49.5 - 1.96 * 2.887, 49.5 + 1.96 * 2.887), abs=0.4)
    assert intervals.bootstrap([1, 2], sum) is None
    assert intervals.mean([1.0, None, 3.0]) == "2.0"
    assert intervals.mean([None]) == ""


def test_a_method_is_summed_up_over_its_networks(study: ModuleType) -> None:
    repairs = sys.modules["repairs"]
    rows = [
        a_repair("best", "a", asr=0.1, acc=0.77, recall=0.8),  # repaired, at the limits
        a_repair("best", "b", asr=0.0, acc=0.76),  # too dear
        {**a_repair("best", "c", asr=None), "changed": False},
        {**a_repair("best", "d", asr=None, acc=0.78), "changed": True},
        {**a_repair("bnp", "a", asr=0.9), "refused": "no BatchNorm"},
    ]
    table = repairs.summary(rows)
    # DER: (80 - 3 + 100) / 2 and (90 - 4 + 100) / 2.
    expected = [
        "best",
        "2",
        "0",
        "1 of 2 [9, 91 %]",
        "76.5",
        "5.0",
        "90.8",
        "3.5",
        "5.0",
        "1 of 2 [9, 91 %]",
        "1.0, 2.0",
    ]
    assert cells(table, "best") == expected
    assert cells(table, "bnp")[1:8] == ["1", "1", "0 of 1 [0, 79 %]", "80.0", "90.0", "50.0", "0.0"]
    assert "| best | 5.0 / 3.5 (2) |" in table
    assert [row["method"] for row in repairs.shared(rows)] == ["best", "bnp"]  # of network a alone


def test_what_is_in_a_store_and_what_left_is_counted(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNBACKDOOR_CACHE", str(tmp_path / "cache"))
    grid, store = toy(tmp_path), Store(tmp_path / "store")
    cheap = tuple(
        c for c in grid.cells if isinstance(c, Training) or c.title.endswith((": lpp", "bnp (0.5 clean, seed 0)"))
    )
    grid = dataclasses.replace(grid, cells=cheap)
    run_grid(grid, store, Local())
    clean, attacked = [cell for cell in grid.cells if isinstance(cell, Training)]
    bnp = next(cell for cell in grid.cells if cell.needs == clean and "bnp" in cell.title)
    path = store.path(bnp, bnp.key(store.digests()))
    path.unlink()
    store.fail(bnp, bnp.key(store.digests()), "bnp: no BatchNorm")
    rows, said = sys.modules["repairs"].stored(grid, store)
    took = store.trained(attacked, attacked.key(store.digests()))[0]["asr"]["value"] >= 0.8
    assert said.startswith(f"2 networks, 2 of them trained; {0 if took else 1} left")
    assert f"1 clean and {int(took)} backdoored ones stay" in said
    [refused] = [row for row in rows if row["refused"]]
    assert refused["method"] == "bnp, 50 %"
    assert (refused["before"] == refused["after"], refused["changed"]) == (True, False)
    assert len(rows) == (4 if took else 2)


def test_areas_and_curves_by_hand(study: ModuleType, tmp_path: Path) -> None:
    witnesses = sys.modules["witnesses"]

    def row(seed: int, head: float | None, target: int | None = None) -> dict[str, Any]:
        attack = None if target is None else {"name": "badnet", "target": target, "mapping": "all-to-one"}
        about = {"data": "cifar10", "arch": "resnet18:width=8,stride=2", "recipe": "fast", "seed": seed, "classes": 2}
        about |= {"network": f"training/{seed}", "attack": attack, "acc": 0.8, "asr": None if attack is None else 0.9}
        return {**about, "running_statistics": True, "seconds": 1.0, "scores": {"head": [0.0, head]}}

    clean = [row(n, head) for n, head in enumerate((1.0, 2.0, 3.0, 4.0))]
    bad = [row(10, 9.0, 1), row(11, 2.5, 0)]
    weak = {**row(12, 9.0, 1), "asr": 0.79, "scores": {}}
    found = witnesses.Judged.of([*clean, *bad, weak])
    assert (len(found.clean), len(found.took), found.left) == (4, 2, 1)
    # Of eight pairs, 9.0 wins four and 2.5 two.
    assert found.area([*clean, *bad], "head") == 0.75
    assert found.curve(bad, clean, "head") == ([0, 0, 0.25, 0.5, 0.5, 0.75, 1], [0, 0.5, 0.5, 0.5, 1, 1, 1])
    assert found.area(clean, "head") is None
    assert found.area([*clean, *bad], "stimulation") == 0.5  # which looked at none
    assert witnesses.roc(found, "attack").svg.startswith("<svg")


def test_the_meter_is_shown_as_the_package_has_it(study: ModuleType) -> None:
    name = next(iter(meter.coefficients().weights))
    scale = meter.Coefficients(weights={name: 10.0}, below=2.0, above=2.0, rest=0.5, made_on="")
    rows = [
        {"network": "a", "edit": f"lpp {n}", "loss": loss, name: moved ** (1 / meter.POWER)}
        for n, (loss, moved) in enumerate(((0.0, 0.0), (1.0, 0.1), (4.0, 0.2), (9.0, 0.3)))
    ]
    table = sys.modules["damage"].show(rows, scale)
    # Predicted 0, 1, 2 and 3: in order, all but the last within a factor of two and half a point.
    assert cells(table, "rank correlation")[1] == "1.000"
    assert cells(table, "losses inside the 90 % interval")[1] == "0.750"
    assert cells(table, "lpp")[1:] == ["4", "3.5", "1.5", "0.75"]


def test_only_the_judgement_half_is_measured(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    population = sys.modules["population"]
    folders = {}
    for half, pairs in population.halves().items():
        for number, pair in enumerate(pairs):
            folder = folders[half, number] = tmp_path / "training" / f"{half}{number}"
            folder.mkdir(parents=True)
            data = "runs/population/data.toml:tiny20" if pair.data == "tiny20" else pair.data
            config = {"data": data, "arch": f"{pair.arch},num_classes=10", "recipe": {"name": pair.recipe}}
            record = {"config": {**config, "seed": 1, "attack": None}, "result": {"rates": {}}}
            (folder / "record.json").write_text(json.dumps({"record": record}))
            (folder / "model.safetensors").touch()
    for number, (half, _) in enumerate(folders):
        config, _ = sys.modules["trained"].read(folders[half, number % 12])
        assert study.is_judged(config) is (half == "judgement")
        assert sys.modules["witnesses"].allowed(config) is (half == "calibration")
    done: list[str] = []
    file = tmp_path / "rows.jsonl"
    for _ in range(2):  # the second time, all are there
        study.measure(
            [tmp_path / "training"],
            file,
            lambda folder: done.append(folder.name) or [{"network": f"training/{folder.name}"}],
        )
    assert sorted(done) == sorted(folder.name for (half, _), folder in folders.items() if half == "judgement")


def test_tables_of_nothing_say_so(study: ModuleType, tmp_path: Path) -> None:
    text = study.tables(None, [], [], tmp_path)
    assert (text.count("None was run."), text.count("No network was looked at."), text.count("Nothing was")) == (
        1,
        1,
        2,
    )


def test_what_repairs_did_is_kept_and_shown_without_the_store(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [a_repair("best", "training/a", asr=0.05), a_repair("best", "training/b", asr=None)]
    store = tmp_path / "store"
    _ = Store(store)
    monkeypatch.setattr(study, "read_grid", lambda _path: None)
    monkeypatch.setattr(study.repairs, "stored", lambda *_: (rows, "two networks"))

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["judgement.py", *words, "--rows", str(tmp_path)])
        study.main()
        return capsys.readouterr().out

    output = str(tmp_path / "tables")
    assert "None was run." in run("show", "-o", output)
    assert run("keep", "--store", str(store)) == "two networks\n"
    text = run("show", "-o", output)
    assert "two networks" in text
    assert cells(text, "best")[3].startswith("1 of 1")
    assert (tmp_path / "tables" / "tables.md").read_text() in text
    with pytest.raises(SystemExit, match="2"):
        run("keep")
