"""Grids: products, keys, and what is refused."""

from pathlib import Path

import pytest
from PIL import Image

from bench_grids import pictures, toy, written
from unbackdoor.errors import SettingError
from unbackdoor.experiments import Repair, Training, read_grid
from unbackdoor.experiments.cell import VERSIONS

GRIDS = sorted((Path(__file__).parents[2] / "grids").rglob("*.toml"))


def test_a_run_is_the_product_of_its_lists(tmp_path: Path) -> None:
    path = written(
        tmp_path / "g.toml",
        data="cifar10",
        arch=["resnet18:width=16", "vgg19_bn:width=16"],
        attack=["none", "badnet", "wanet"],
        rate=[0.1, 0.01],
        seed=[0, 1],
        method=["none", "lpp", "bnp"],
        clean=[0.05, 0.01],
        clean_seed=[0, 1, 2],
    )
    cells = read_grid(path).cells
    trainings = [cell for cell in cells if isinstance(cell, Training)]
    repairs = [cell for cell in cells if isinstance(cell, Repair)]
    assert len(trainings) == 2 * 2 * (1 + 2 * 2)  # a clean network has no rate
    assert len(repairs) == len(trainings) * (1 + 2 * 3)  # LPP is given nothing
    for cell in repairs:
        assert cells.index(cell.training) < cells.index(cell)


def test_equal_cells_of_two_runs_are_one(tmp_path: Path) -> None:
    path = tmp_path / "g.toml"
    run = '[[runs]]\ndata = "cifar10"\narch = "resnet18:width=2"\n'
    path.write_text(run + 'method = "lpp"\n' + run + 'method = ["lpp", "clp"]\n')
    assert len(read_grid(path).cells) == 3


def test_keys_tell_what_a_result_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(digest: str = "d", **values: object) -> str:
        settings = {"data": "cifar10", "arch": "resnet18:width=2", "method": "lpp", **values}
        return read_grid(written(tmp_path / "g.toml", **settings)).cells[-1].key({"cifar10": digest})

    keys = [
        key(),
        key(seed=1),
        key(method="clp"),
        key(method="lpp:upper=2.5"),
        key(recipe="paper"),
        key(epochs=3),
        key(attack="badnet"),
        key(attack="badnet:size=2"),
        key(attack="badnet", rate=0.2),
        key(attack="badnet", target=1),
        key(dtype="float32"),
        key(arch="resnet18:width=4"),
        key("another digest"),
        key(method="bnp"),
        key(method="bnp", clean=0.01),
        key(method="bnp", clean_seed=1),
        key(method="bnp@backdoorbench"),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]
    assert key(method="lpp:upper=3.0") == key(method="lpp:upper=3") == keys[0]  # a default written out is the same cell
    assert key(rate=0.5) == keys[0]  # a clean network has no rate
    monkeypatch.setitem(VERSIONS, "repair", 2)
    assert key() != keys[0]
    monkeypatch.setitem(VERSIONS, "repair", 1)
    monkeypatch.setitem(VERSIONS, "training", 2)
    assert key() != keys[0]


def _slice(folder: Path) -> None:
    """What `studies/population.py slice` writes, with an image a class."""
    for split in ("train", "valid"):
        for label in range(20):
            (folder / "tiny20" / split / f"{label:02}").mkdir(parents=True)
            Image.new("RGB", (64, 64)).save(folder / "tiny20" / split / f"{label:02}" / "0.png")
    (folder / "data.toml").write_text('tiny20 = { folder = "tiny20", size = 64, splits = ["train", "valid"] }')


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"atack": "badnet"}, "unknown key 'atack'"),
        ({"attack": "badnets"}, "did you mean 'badnet'?"),
        ({"attack": "badnet:sise=2"}, "unknown setting 'sise'"),
        ({"attack": "badnet", "rate": 0.0}, "rate: expected a share above 0"),
        ({"attack": "badnet", "target": 10}, "target: expected one of the classes"),
        ({"attack": "lc"}, "needs a clean network, which a grid cannot give"),
        ({"method": "lppp"}, "unknown method"),
        ({"method": "lpp@backdoorbench"}, "it has as_printed"),
        ({"method": "bnp", "clean": 5.0}, "clean: expected a share above 0"),
        ({"recipe": "slow"}, "unknown recipe"),
        ({"epochs": -1}, "epochs: expected a whole number of at least 1"),
        ({"seed": "0"}, "seed: expected int"),
        ({"seed": [0, True]}, "seed[1]: expected int, got bool"),
        ({"seed": []}, "seed: expected array of length >= 1, got []"),
        ({"dtype": "int8"}, "dtype: expected"),
        ({"seed": -1}, "seed: expected int >= 0, got -1"),
        ({"clean_seed": 2**64}, "clean_seed: expected int <= 9223372036854775807, got 18446744073709551616"),
        ({"attack": "badnet", "correlation": -5}, "correlation: expected int >= 0, got -5"),
        ({"method": "ep", "attack": "badnet", "poisoned": 7.0}, "poisoned: expected a share"),
        ({"attack": "badnet:target=3"}, "the target class as a key of the run"),
        ({"data": "cifar11"}, "unknown data set"),
        ({"arch": "resnet19"}, "resnet19"),
        ({"arch": "resnet18:width=-1"}, "width: expected a whole number from 1"),
        ({"arch": "resnet18:widht=2"}, "unknown option 'widht'"),
        ({"arch": "resnet18:num_classes=7"}, "has 10 classes, not 7"),
    ],
)
def test_wrong_runs_are_refused_before_anything_runs(tmp_path: Path, values: dict[str, object], says: str) -> None:
    settings = {"data": "cifar10", "arch": "resnet18:width=2", **values}
    with pytest.raises(SettingError, match="runs 1: ") as caught:
        read_grid(written(tmp_path / "g.toml", **settings))
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = 3\n[[runs]]\n", "name: expected str, got int"),
        ("names = 'x'\n", "unknown key 'names'"),
        ("paper = 'T9'\n", "paper: expected one of T1"),
        ("name = 'x'\n", "expected at least one"),
        ("runs = 3\n", "runs: expected array, got int"),
        ("networks = 'zoo'\n[[runs]]\n", "networks: expected array, got str"),
        ("networks = [1]\n[[runs]]\n", "networks[0]: expected str, got int"),
        ("[[runs]]\n", "expected 'data', which is missing"),
        ("[[runs]\n", "expected a grid in TOML"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "g.toml").write_text(text)
    with pytest.raises(SettingError, match="g.toml") as caught:
        read_grid(tmp_path / "g.toml")
    assert says in str(caught.value)
    with pytest.raises(SettingError, match="expected a grid"):
        read_grid(tmp_path / "none.toml")


@pytest.mark.parametrize("values", [{"attack": ["badnet", "badnet:size=3"]}, {"epochs": [0, 15]}])
def test_one_network_under_two_names_is_refused(tmp_path: Path, values: dict[str, object]) -> None:
    path = written(tmp_path / "g.toml", **{"data": "cifar10", "arch": "resnet18:width=2", **values})
    with pytest.raises(SettingError, match="are the same network; use one name for it"):
        read_grid(path)


def test_networks_lie_where_their_grid_does(tmp_path: Path) -> None:
    path = tmp_path / "g.toml"
    path.write_text('networks = ["../zoo/a"]\n[[runs]]\ndata = "cifar10"\narch = "resnet18:width=2"\n')
    assert read_grid(path).networks == (tmp_path / "../zoo/a",)


def test_own_data_sets(tmp_path: Path) -> None:
    grid = toy(tmp_path)
    assert len(grid.cells) == 12
    assert grid.data_sets == (str(pictures(tmp_path / "pictures")),)


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_grids_that_come_with_the_project_are_sound(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = path.resolve()
    if path.parent.name == "population":  # a slice of a data set stands beside the store
        _slice(tmp_path / "runs" / "population")
        monkeypatch.chdir(tmp_path)
    grid = read_grid(path)
    assert grid.cells
    assert grid.title
    digests = dict.fromkeys(grid.data_sets, "d")
    keys = [cell.key(digests) for cell in grid.cells]
    twice = {cell.title.partition(": ")[2] for cell, key in zip(grid.cells, keys, strict=True) if keys.count(key) > 1}
    assert twice <= {"lpp:lower=-3", "lpp:upper=3"}  # LPP's two sweeps meet in its defaults
