"""torchvision's own folder, written here, and the pickles that must not run."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from unbackdoor.data import load_dataset
from unbackdoor.errors import DataError

RNG = np.random.default_rng(0)


def _write(folder: Path, name: str, data: object, labels: object, **options: int) -> None:
    folder.mkdir(exist_ok=True)
    content = {b"data": data, b"labels": labels, b"batch_label": b"made here"}
    (folder / name).write_bytes(pickle.dumps(content, **options))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five training batches of two images, with the labels 0 to 9 in order, and one of one."""
    folder = tmp_path / "cifar-10-batches-py"
    for i in range(5):
        pixels = RNG.integers(0, 256, (2, 3072), np.uint8)
        _write(folder, f"data_batch_{i + 1}", pixels, [2 * i, 2 * i + 1], protocol=2)
    _write(folder, "test_batch", np.arange(3072, dtype=np.uint32).astype(np.uint8)[None], [3], protocol=2)
    return tmp_path


def test_batches_in_order(root: Path) -> None:
    assert load_dataset("cifar10", "train", root).labels.tolist() == list(range(10))
    test = load_dataset("cifar10", "test", root / "cifar-10-batches-py")
    # red first, then green, then blue, row by row
    assert test.images[0].flatten().tolist() == [i % 256 for i in range(3072)]
    assert test.images.shape == (1, 3, 32, 32)


def test_a_missing_batch_is_named(root: Path) -> None:
    (root / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match="expected a file data_batch_3, which is missing"):
        load_dataset("cifar10", "train", root)


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        (np.zeros((1, 3071), np.uint8), [0]),
        (np.zeros((0, 3072), np.uint8), []),
        (np.zeros((1, 3072), np.uint8), [0, 1]),
        (np.zeros((1, 3072), np.uint8), [10]),
        (np.zeros((1, 3072), np.uint8), ["cat"]),
        ("no pixels", [0]),
    ],
)
def test_a_bad_batch_is_refused(root: Path, data: object, labels: object) -> None:
    _write(root / "cifar-10-batches-py", "test_batch", data, labels)
    with pytest.raises(DataError):
        load_dataset("cifar10", "test", root)


@pytest.mark.parametrize("content", [b"", b"\x80\x04garbage", pickle.dumps([1, 2]), pickle.dumps({})])
def test_garbage_is_refused(root: Path, content: bytes) -> None:
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch: expected a CIFAR-10 batch"):
        load_dataset("cifar10", "test", root)


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar100" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, labels in (("train", [99, 0]), ("test", [7])):
        data = RNG.integers(0, 256, (len(labels), 3072), np.uint8)
        content = {b"data": data, b"fine_labels": labels, b"coarse_labels": [1] * len(labels)}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    assert load_dataset("cifar100", "train", tmp_path).labels.tolist() == [99, 0]
    assert load_dataset("cifar100", "test", tmp_path).labels.tolist() == [7]
    with pytest.raises(DataError, match="CIFAR-10 was not found"):
        load_dataset("cifar10", "test", tmp_path)


class _Canary:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.file}'",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_code_is_named_and_not_run(root: Path, tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    _write(root / "cifar-10-batches-py", "test_batch", _Canary(canary), [0], protocol=protocol)
    with pytest.raises(DataError, match=r"it would run (posix|nt)\.system, and only arrays are allowed"):
        load_dataset("cifar10", "test", root)
    assert not canary.exists()
