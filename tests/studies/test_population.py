"""The population: its halves, its grids, and that nobody looks at the half that judges."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from unbackdoor.experiments import Repair, Training, read_grid

ROOT = Path(__file__).parents[2]
GRIDS = ROOT / "grids" / "population"


@pytest.fixture(scope="module")
def population(study_named: Callable[[str], ModuleType]) -> ModuleType:
    return study_named("population")


def test_the_halves_share_no_pair(population: ModuleType) -> None:
    calibration, judgement = (set(pairs) for pairs in population.halves().values())
    assert not calibration & judgement
    assert calibration | judgement == set(population.PAIRS)
    assert len(calibration) == len(judgement) == 12
    by_text = [{(pair.arch, pair.recipe) for pair in half} for half in (calibration, judgement)]
    assert not by_text[0] & by_text[1]


def test_the_grids_are_those_that_the_study_writes(population: ModuleType) -> None:
    assert {path.stem: path.read_text() for path in GRIDS.glob("*.toml")} == population.grids()
    assert set(population.grids()) == {*population.halves(), "further", "flat", "honest", "repairs", "thresholds"}


def test_what_it_holds(population: ModuleType) -> None:
    halves = [tomllib.loads((GRIDS / f"{half}.toml").read_text())["runs"] for half in population.halves()]
    runs = [run for half in halves for run in half]
    clean = [run for run in runs if "attack" not in run]
    backdoored = [run for run in runs if "attack" in run]
    assert (len(clean), len(backdoored)) == (60, 72)
    assert len({run["arch"] for run in runs}) == 13
    assert {run["target"] for run in backdoored if "all-to-all" not in run["attack"]} & {0} == set()
    assert {run["attack"].partition(":")[0] for run in backdoored} == {
        *("badnet", "blended", "bpp", "wanet", "sig", "lf", "ssba", "inputaware")
    }
    keys = [(run["data"], run["arch"], run["recipe"], run["seed"]) for run in runs]
    assert len(set(keys)) == len(keys)
    # In each half, every prefix of a round holds as many clean as backdoored networks, but for one.
    for half in halves:
        assert ["attack" in run for run in half][:48] == [False, True] * 24


def test_repairs_are_of_the_judgement_half_alone(tmp_path: Path) -> None:
    found = []
    for name in ("judgement", "repairs"):
        head, *runs = (GRIDS / f"{name}.toml").read_text().split("\n[[runs]]\n")
        runs = [run for run in runs if "data.toml:" not in run]  # whose images are not in the repository
        (tmp_path / "part.toml").write_text("\n[[runs]]\n".join([head, *runs]))
        found.append(read_grid(tmp_path / "part.toml"))
    networks, grid = found
    trainings = [cell for cell in grid.cells if isinstance(cell, Training)]
    assert trainings == list(networks.cells)  # the same networks, in the same rounds
    repaired: dict[Training, set[tuple[str, float | None]]] = {}
    for cell in grid.cells:
        if isinstance(cell, Repair):
            repaired.setdefault(cell.training, set()).add((cell.method, cell.clean))
    rivals = {
        (method, share) for method in ("bnp", "ep", "anp", "nad", "ibau", "ft", "fp", "rnp") for share in (0.01, 0.05)
    }
    own = {(method, None) for method in ("lpp", "clp", "lpp@auto", "clp@auto", "best")}
    assert [repaired[training] for training in trainings] == [own | rivals] * len(trainings)


def test_nobody_reads_the_judgement_half() -> None:
    """Only the study that writes the grids names it, and the one that makes the final tables."""
    named = [
        path.relative_to(ROOT).as_posix()
        for folder in ("src", "studies", "benchmarks", "docs")
        for path in (ROOT / folder).rglob("*.py")
        if "judgement" in path.read_text(encoding="utf-8")
    ]
    assert sorted(named) == ["studies/judgement.py", "studies/population.py"]


def test_finished_networks_that_stay_are_kept_and_restored(population: ModuleType, tmp_path: Path) -> None:
    """A clean one and one whose attack took; not one whose attack did not take, and not one that is not finished."""
    asr = {"clean": None, "took": {"value": 0.8}, "failed": {"value": 0.79}}
    for name in (*asr, "unfinished"):
        folder = tmp_path / "store" / "training" / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(name)
        if name in asr:
            (folder / "record.json").write_text(json.dumps({"record": {"result": {"rates": {"asr": asr[name]}}}}))
    assert population.copied(tmp_path / "store", tmp_path / "kept") == 2
    assert population.copied(tmp_path / "kept", tmp_path / "other") == 2
    restored = tmp_path / "other" / "training"
    assert {path.name for path in restored.iterdir()} == {"clean", "took"}
    assert (restored / "took" / "model.safetensors").read_text() == "took"


def test_what_is_kept_is_of_the_population(population: ModuleType) -> None:
    """Every kept network is one of the grids', so that a store that has it does not train it again."""
    wanted = {
        (
            one.pair.data,
            one.pair.arch,
            one.pair.recipe,
            one.pair.epochs,
            one.seed,
            one.attack.partition(":")[0],
            one.rate,
        )
        for networks in (*map(population.networks, population.halves().values()), population.FURTHER, population.HONEST)
        for one in networks
    }
    kept = sorted(population.KEPT.glob("training/*/record.json"))
    assert kept
    for record in kept:
        config = json.loads(record.read_text())["record"]["config"]
        recipe, attack = config["recipe"], config["attack"] or {"name": "none"}
        arch = re.sub(r"[:,]num_classes=\d+$", "", config["arch"])
        found = (
            config["data"].rpartition(":")[2],
            arch,
            recipe["name"],
            recipe["epochs"],
            config["seed"],
            attack["name"],
        )
        assert (*found, config["rate"] or 0.0) in wanted
        assert config["dtype"] == "bfloat16"
