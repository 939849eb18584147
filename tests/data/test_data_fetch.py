"""Downloads, with no network: torchvision's functions are replaced."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from made_images import pixels, write

from unbackdoor.cli import main
from unbackdoor.data import DATASETS, load_dataset
from unbackdoor.errors import DataError

datasets = pytest.importorskip("torchvision.datasets")

Archive = Callable[[Callable[[Path], None]], list[str]]


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Makes torchvision "unpack" what a function writes into a folder; returns the list of addresses asked for."""

    def install(unpack: Callable[[Path], None]) -> list[str]:
        asked: list[str] = []

        def download(url: str, root: str, **_: Any) -> None:
            asked.append(url)
            Path(root).mkdir(exist_ok=True)
            print("torchvision talks")
            unpack(Path(root))

        monkeypatch.setattr(datasets.utils, "download_and_extract_archive", download)
        return asked

    return install


def _classes(folder: Path) -> None:
    for name in ("cat", "dog"):
        write(folder / "test" / name / "a.png", pixels(0))


def test_a_data_set_that_is_missing_is_fetched_once(
    archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = archive(_classes)
    root = tmp_path / "new" / "data"
    for _ in range(2):
        assert load_dataset("cifar10", "test", root, download=True).labels.tolist() == [3, 5]
    assert asked == [datasets.CIFAR10.url]
    assert [path.name for path in root.iterdir()] == ["cifar10"]
    assert capsys.readouterr().out == ""  # stdout belongs to the report


def test_tiny_imagenet(archive: Archive, tmp_path: Path) -> None:
    name = DATASETS["tiny_imagenet"].classes[5]
    asked = archive(lambda folder: write(folder / "tiny-imagenet-200" / "train" / name / "a.png", pixels(0, 64)))
    assert load_dataset("tiny_imagenet", "train", tmp_path, download=True).labels.tolist() == [5]
    assert asked == ["http://cs231n.stanford.edu/tiny-imagenet-200.zip"]


def test_gtsrb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gtsrb(root: str, split: str, *, download: bool) -> None:
        assert download
        base = Path(root) / "gtsrb"
        if split == "train":
            write(base / "GTSRB" / "Training" / "00007" / "a.ppm", np.zeros((20, 20, 3), np.uint8))
            (base / "GTSRB-Training_fixed.zip").write_bytes(b"large")

    monkeypatch.setattr(datasets, "GTSRB", gtsrb)
    assert load_dataset("gtsrb", "train", tmp_path, download=True).labels.tolist() == [7]
    assert list(tmp_path.rglob("*.zip")) == []


@pytest.mark.parametrize(
    "error", [URLError(OSError(101, "Network is unreachable")), RuntimeError("File not found\nor")]
)
def test_no_network_is_one_line_and_leaves_nothing(archive: Archive, tmp_path: Path, error: Exception) -> None:
    def fail(folder: Path) -> None:
        _classes(folder)
        raise error

    archive(fail)
    with pytest.raises(
        DataError, match=r"^CIFAR-10 could not be downloaded: .*(unreachable|found or); try again, or put its"
    ) as caught:
        load_dataset("cifar10", "test", tmp_path, download=True)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(archive: Archive, tmp_path: Path) -> None:
    asked = archive(_classes)
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "mine").write_text("precious")
    with pytest.raises(
        DataError, match="expected an empty folder, or CIFAR-10 in a layout that can be read; nothing was downloaded"
    ):
        load_dataset("cifar10", "test", tmp_path, download=True)
    assert asked == []
    (tmp_path / "cifar10" / "mine").unlink()
    assert len(load_dataset("cifar10", "test", tmp_path, download=True)) == 2


def test_a_place_that_cannot_be_written(archive: Archive, tmp_path: Path) -> None:
    archive(_classes)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="CIFAR-10 could not be downloaded: "):
        load_dataset("cifar10", "test", tmp_path / "file", download=True)


def test_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DataError, match="downloading CIFAR-10 needs torchvision, which is not installed; pip install"):
        load_dataset("cifar10", "test", tmp_path, download=True)


@pytest.mark.parametrize("download", [False, True])
def test_the_flag(
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    download: bool,
) -> None:
    def fail(_folder: Path) -> None:
        raise URLError("no network")

    archive(fail)
    words = ["train", "--data", "cifar10", "--arch", "resnet18:width=4", "--data-dir", str(tmp_path), "--quiet"]
    words += ["-o", str(tmp_path / "out")] + ["--download"] * download
    monkeypatch.setattr("sys.argv", ["unbackdoor", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    message = "could not be downloaded: no network" if download else "or fetch it with --download"
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in err
    assert err.replace("torchvision talks\n", "").count("\n") == 1
