"""The study of the witnesses: whom it may look at, what it keeps, and that its fit does not depend on order."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from unbackdoor.defender import clean_networks


@pytest.fixture(scope="module")
def study(study_named: Callable[[str], ModuleType]) -> ModuleType:
    return study_named("witnesses")


def a_row(seed: int, *, target: int | None = None, **largest: float) -> dict:
    attack = None if target is None else {"name": "badnet", "target": target}
    scores = {name: [0.0, value, None] for name, value in largest.items()}
    return {
        "network": f"training/{seed}",
        "data": "cifar10",
        "arch": "resnet18:width=8,stride=2",
        "recipe": "fast",
        "seed": seed,
        "attack": attack,
        "acc": 0.8,
        "asr": None if target is None else 0.9,
        "classes": 3,
        "running_statistics": True,
        "seconds": 1.0,
        "scores": scores,
        "values": {},
        "missing": {},
    }


def a_folder(path: Path, arch: str, recipe: str, data: str = "cifar10") -> Path:
    path.mkdir(parents=True)
    config = {"data": data, "arch": arch, "recipe": {"name": recipe}, "seed": 1, "attack": None}
    rates = {"acc": {"hits": 8, "total": 10}, "asr": None}
    (path / "record.json").write_text(json.dumps({"record": {"config": config, "result": {"rates": rates}}}))
    (path / "model.safetensors").write_bytes(b"")
    return path


def test_only_the_half_for_calibration_is_looked_at(study: ModuleType) -> None:
    halves = study.population.halves()
    for half, pairs in halves.items():
        for pair in pairs:
            config = {"data": pair.data, "arch": f"{pair.arch},num_classes=10", "recipe": {"name": pair.recipe}}
            assert study.allowed(config) == (half == "calibration")
            assert not study.allowed({**config, "recipe": "another"})
    assert study.allowed({"data": "cifar10", "arch": "resnet18:width=16,num_classes=10", "recipe": "fast"})


def test_the_further_networks_are_not_looked_at(study: ModuleType) -> None:
    known = {(pair.data, pair.arch, pair.recipe) for pair in study.population.PAIRS}
    for one in study.population.FURTHER:
        pair = one.pair
        assert (pair.data, pair.arch, pair.recipe) not in known
        separator = "," if "=" in pair.arch else ":"
        arch = f"{pair.arch}{separator}num_classes=10"
        config = {"data": pair.data, "arch": arch, "recipe": {"name": pair.recipe}}
        assert study.is_further(config)
        assert not study.allowed(config)
        assert not study.is_further({**config, "recipe": "fast"})


def test_more_honest_networks_are_of_no_half(study: ModuleType) -> None:
    known = {(pair.data, pair.arch) for pair in study.population.PAIRS}
    known |= {(one.pair.data, one.pair.arch) for one in study.population.FURTHER}
    honest = study.population.HONEST
    assert len({one.pair for one in honest}) == len({one.seed for one in honest}) == len(honest)
    for one in honest:
        assert one.attack == "none"
        assert (one.pair.data, one.pair.arch) not in known
        config = {"data": one.pair.data, "arch": f"{one.pair.arch},num_classes=10", "recipe": one.pair.recipe}
        assert study.allowed(config)


def test_folders_and_their_truth(study: ModuleType, tmp_path: Path) -> None:
    one = a_folder(tmp_path / "store" / "a", "resnet18:width=16,num_classes=10", "fast")
    (tmp_path / "store" / "running").mkdir()
    assert list(study.networks([tmp_path / "store", one, tmp_path / "none"])) == [one, one]
    assert study.truth(one) == {
        "network": "store/a",
        "data": "cifar10",
        "arch": "resnet18:width=16",
        "recipe": "fast",
        "seed": 1,
        "attack": None,
        "acc": 0.8,
        "asr": None,
    }


def test_it_goes_on_where_it_stopped(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        a_folder(tmp_path / "store" / name, "resnet18:width=16,num_classes=10", "fast")
    looked: list[str] = []

    def measure(folder: Path) -> dict:
        looked.append(folder.name)
        return {**a_row(0), "network": f"store/{folder.name}"}

    monkeypatch.setattr(study, "measure", measure)
    rows = tmp_path / "rows.jsonl"
    for folders in ([tmp_path / "store" / "a"], [tmp_path / "store", tmp_path / "store"]):
        monkeypatch.setattr(sys, "argv", ["witnesses.py", "measure", *map(str, folders), "--rows", str(rows)])
        study.main()
    assert looked == ["a", "b"]
    assert len(rows.read_text().splitlines()) == 2


def test_the_fit_keeps_the_honest_ones_in_order(study: ModuleType) -> None:
    rows = [a_row(seed, head=1.0 + seed, stimulation=2.0) for seed in range(5)]
    bad = a_row(9, target=1, head=50.0, stimulation=2.0)
    found = study.fit([*rows[::-1], bad])
    assert found == study.fit([bad, *rows])
    assert [one.largest for one in found.networks] == [
        {"head": 1.0 + seed, "stimulation": 2.0, "channels": None, "reconstruction": None} for seed in range(5)
    ]
    assert study.judged(bad, [*rows, bad]).suspects == (1,)
    assert study.judged(rows[0], [*rows, bad]).honest == 4
    assert study.rank(bad, "head") == "50.0 (rank 1)"


def test_what_ships_is_what_the_study_writes(study: ModuleType) -> None:
    rows = [json.loads(line) for line in study.ROWS.read_text().splitlines()]
    raw = Path(clean_networks.__file__).with_name("witness.json").read_bytes()
    assert msgspec.json.format(msgspec.json.encode(study.fit(rows)), indent=1) + b"\n" == raw
    assert len({row["network"] for row in rows}) == len(rows)
