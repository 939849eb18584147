"""A user's own images: a folder, or a line of TOML."""

from pathlib import Path

import numpy as np
import pytest
from made_images import encoded, pixels, write

from unbackdoor.data import dataset_spec, load_dataset
from unbackdoor.errors import DataError, SettingError


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """tmp_path/birds: wren and owl, the training part with both, the validation part with one."""
    folder = tmp_path / "birds"
    write(folder / "train" / "wren" / "a.png", np.full((24, 24, 3), 1, np.uint8))
    write(folder / "train" / "owl" / "deep" / "b.png", np.full((24, 24, 3), 2, np.uint8))
    write(folder / "val" / "wren" / "c.png", np.full((24, 24, 3), 3, np.uint8))
    (folder / "train" / ".hidden").mkdir()
    return folder


def _toml(birds: Path, text: str) -> str:
    file = birds.parent / "data.toml"
    file.write_text(text)
    return str(file)


def test_a_folder(birds: Path) -> None:
    spec = dataset_spec(str(birds))
    assert (spec.name, spec.classes, spec.size, spec.flip, spec.resize) == ("birds", ("owl", "wren"), 24, False, False)
    assert (spec.mean, spec.std, spec.splits) == ((0, 0, 0), (1, 1, 1), ("train", "val"))
    train, test = load_dataset(str(birds), "train"), load_dataset(str(birds), "test")
    assert (train.labels.tolist(), train.images[:, 0, 0, 0].tolist()) == ([0, 1], [2, 1])
    assert (test.labels.tolist(), test.images[:, 0, 0, 0].tolist()) == ([1], [3])


def test_a_folder_in_the_working_directory(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(birds.parent)
    assert len(load_dataset("birds", "train")) == 2
    monkeypatch.chdir(birds)
    assert dataset_spec(".").name == "birds"


def test_a_known_name_is_never_a_folder(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    birds.rename(birds.parent / "cifar10")
    monkeypatch.chdir(birds.parent)
    assert dataset_spec("cifar10").title == "CIFAR-10"
    assert dataset_spec("./cifar10").classes == ("owl", "wren")


def test_one_line(birds: Path) -> None:
    file = _toml(birds, 'birds = { folder = "birds", size = 16 }\n')
    data = load_dataset(file, "train")
    assert (data.images.shape, data.resized, data.spec.name) == ((2, 3, 16, 16), 2, "birds")


def test_every_key(birds: Path) -> None:
    keys = 'size = 24\nmean = [0.5, 0.4, 0]\nstd = [1, 0.2, 0.3]\nflip = true\nformat = "imagefolder"\n'
    file = _toml(birds, f'[a]\nfolder = "nowhere"\n[b]\nfolder = "birds"\nclasses = ["wren", "crow", "owl"]\n{keys}')
    spec = dataset_spec(f"{file}:b")
    assert (spec.name, spec.classes, spec.size) == ("b", ("wren", "crow", "owl"), 24)
    assert (spec.mean, spec.std, spec.flip) == ((0.5, 0.4, 0.0), (1.0, 0.2, 0.3), True)
    assert load_dataset(f"{file}:b", "train").labels.tolist() == [0, 2]


def test_parts_with_names_of_their_own(birds: Path) -> None:
    (birds / "train").rename(birds / "mine")
    file = _toml(birds, '[birds]\nfolder = "birds"\nsplits = ["mine", "held-out"]\n')
    assert len(load_dataset(file, "train")) == 2
    with pytest.raises(DataError, match=r"birds: expected its test images in .*held-out, found none"):
        load_dataset(file, "test")


def test_a_test_part_alone_does_not_say_which_classes_there_are(birds: Path) -> None:
    """Its wren would be class 0, because it has no owl."""
    (birds / "train").rename(birds / "elsewhere")
    write(birds / "val" / "yellowhammer" / "a.png", pixels(0, 24))
    with pytest.raises(DataError, match=r"train: expected the training part, .* in a data.toml: classes = \[...\]"):
        load_dataset(str(birds), "test")
    file = _toml(birds, '[birds]\nfolder = "birds"\nclasses = ["owl", "wren", "yellowhammer"]')
    assert load_dataset(file, "test").labels.tolist() == [1, 2]
    with pytest.raises(DataError, match="birds: expected its train images"):
        load_dataset(file, "train")


def test_a_test_class_that_training_lacks(birds: Path) -> None:
    write(birds / "val" / "emu" / "a.png", pixels(0, 24))
    with pytest.raises(DataError, match=r"val.emu: birds has no such class; its 2 classes are owl, wren"):
        load_dataset(str(birds), "test")


def test_images_of_several_sizes_need_one_that_is_given(birds: Path) -> None:
    write(birds / "train" / "wren" / "z.png", pixels(0, 25))
    with pytest.raises(DataError, match=r"wren.z.png: expected 24x24 pixels, got 25x25"):
        load_dataset(str(birds), "train")
    write(birds / "train" / "owl" / "a.png", pixels(0, 25, 20))
    with pytest.raises(SettingError, match=r"birds: expected square images, got 25x20; set size"):
        load_dataset(str(birds), "train")
    assert load_dataset(_toml(birds, '[birds]\nfolder = "birds"\nsize = 24'), "train").resized == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[birds]\nfolder = 'birds'\nsise = 3",
            r"unknown setting 'sise'; it has folder, size, classes, mean, std, flip,",
        ),
        ("[birds]\nfolder = 'birds'\nsize = '64'", "size: expected int, got '64'"),
        ("[birds]\nfolder = 'birds'\nsize = -1", "size: expected a number of pixels up to 8192, got -1"),
        (
            "[birds]\nfolder = 'birds'\nsize = 4294967296",
            "size: expected a number of pixels up to 8192, got 4294967296",
        ),
        ("[birds]\nfolder = 'birds'\nflip = 1", "flip: expected bool, got 1"),
        ("[birds]\nfolder = 'birds'\nmean = 0.5", "mean: expected tuple, got 0.5"),
        ("[birds]\nfolder = 'birds'\nmean = [0.5]", r"mean: expected three numbers, got \[0.5\]"),
        ("[birds]\nfolder = 'birds'\nmean = [0, 0, nan]", "mean: expected three numbers"),
        ("[birds]\nfolder = 'birds'\nstd = [1, 1, 0]", "std: expected three numbers above 0"),
        ("[birds]\nfolder = 'birds'\nstd = [1, 1, true]", "std: expected three numbers above 0"),
        ("[birds]\nfolder = 'birds'\nclasses = ['a', 'a']", "classes: expected names that all differ"),
        ("[birds]\nfolder = 'birds'\nclasses = [1, 2]", "classes: expected names that all differ"),
        ("[birds]\nfolder = 'birds'\nsplits = ['train']", "splits: expected the training and the test part"),
        ("[birds]\nfolder = 'birds'\nsplits = ['../x', 'y']", "splits: expected names without slashes"),
        ("[birds]\nfolder = 'birds'\nformat = 'zip'", "format: expected imagefolder or parquet, got 'zip'"),
        ("[birds]\nsize = 3", 'birds: expected a folder, for example folder = "birds"'),
        ("", "expected one table, got none"),
        ("[a]\n[b]", r"expected one table, got a, b; give .*data.toml:NAME"),
        ("size = 3\n[birds]", r"size: outside any table; .* as \[birds\]"),
        ("[birds", "cannot be read as TOML"),
        ("['../birds']\nfolder = 'birds'", "expected a name of letters"),
    ],
)
def test_a_wrong_table_is_one_line(birds: Path, text: str, message: str) -> None:
    file = _toml(birds, text)
    with pytest.raises(SettingError, match=message) as caught:
        dataset_spec(file)
    assert str(caught.value).startswith(file)
    assert "\n" not in str(caught.value)


def test_a_table_or_file_that_is_not_there(birds: Path) -> None:
    file = _toml(birds, '[birds]\nfolder = "birds"')
    with pytest.raises(SettingError, match=r"data.toml: has no table 'bird'; it has birds"):
        dataset_spec(f"{file}:bird")
    with pytest.raises(SettingError, match=r"other.toml: no such file; expected a data.toml with a table"):
        dataset_spec(str(birds / "other.toml"))
    with pytest.raises(DataError, match=r"nowhere: expected a folder of images or a data.toml, found neither"):
        dataset_spec(str(birds / "nowhere"))
    with pytest.raises(DataError, match=r"birds: expected a folder of images; .*nowhere is not a folder"):
        dataset_spec(_toml(birds, '[birds]\nfolder = "nowhere"'))
    (birds.parent / "data.toml").write_bytes(b"\xff")
    with pytest.raises(SettingError, match="cannot be read as TOML"):
        dataset_spec(file)


def test_a_folder_of_something_else(birds: Path) -> None:
    with pytest.raises(DataError, match="expected folders train and test or val or valid or validation that hold a"):
        dataset_spec(str(birds / "train"))
    (birds / "train" / "owl").rename(birds / "owl")
    with pytest.raises(DataError, match=r"train: expected at least two classes, found 1"):
        dataset_spec(str(birds))


def _parquet(folder: Path, split: str, labels: list[int], *, plain: bool = False, label: str = "label") -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [encoded(pixels(i, 20)) for i in range(len(labels))]
    cells = images if plain else [{"bytes": image, "path": None} for image in images]
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": cells, label: labels}), folder / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize(("plain", "label"), [(False, "label"), (True, "fine_label")])
def test_parquet_files_of_ones_own(tmp_path: Path, plain: bool, label: str) -> None:
    _parquet(tmp_path / "fish", "train", [0, 4, 2], plain=plain, label=label)
    _parquet(tmp_path / "fish", "validation", [1], plain=plain, label=label)
    (tmp_path / "data.toml").write_text('fish = { folder = "fish" }')
    name = str(tmp_path / "data.toml:fish")
    spec = dataset_spec(name)
    assert (spec.classes, spec.size, spec.splits) == (("0", "1", "2", "3", "4"), 20, ("train", "validation"))
    assert load_dataset(name, "train").labels.tolist() == [0, 4, 2]
    assert load_dataset(name, "test").labels.tolist() == [1]
    assert dataset_spec(str(tmp_path / "fish")).num_classes == 5


def test_a_test_label_beyond_those_of_training(tmp_path: Path) -> None:
    _parquet(tmp_path / "fish", "train", [0, 1])
    _parquet(tmp_path / "fish", "test", [2])
    with pytest.raises(DataError, match="fish: expected labels 0 to 1, got 2 to 2"):
        load_dataset(str(tmp_path / "fish"), "test")
