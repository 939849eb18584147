"""Layouts of single image files: torchvision's GTSRB, Tiny ImageNet's archive, class folders."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from made_images import pixels, write
from PIL import Image

from unbackdoor.data import DATASETS, LabelledImages, load_dataset
from unbackdoor.errors import DataError


def _first_pixels(data: LabelledImages) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


def _plain(value: int, width: int = 32, height: int = 32) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture(params=["gtsrb/gtsrb/GTSRB", "GTSRB", "gtsrb"])
def gtsrb(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Three signs to train on, and two to test on, listed in another order than that of their names."""
    place = tmp_path / request.param
    for label, name, value in ((14, "00001.ppm", 3), (2, "00000.ppm", 1), (14, "00000.ppm", 2)):
        write(place / "Training" / f"{label:05}" / name, _plain(value, 30, 40))
    (place / "Training" / "00014" / "GT-00014.csv").write_text("Filename;Width\n")
    write(place / "Final_Test" / "Images" / "00000.ppm", _plain(4))
    write(place / "Final_Test" / "Images" / "00001.ppm", _plain(5))
    table = "Filename;Width;Height;ClassId\n00001.ppm;32;32;42\n00000.ppm;32;32;7\n"
    (place.parent / "GT-final_test.csv").write_text(table)
    return tmp_path


def test_gtsrb(gtsrb: Path) -> None:
    train, test = load_dataset("gtsrb", "train", gtsrb), load_dataset("gtsrb", "test", gtsrb)
    assert (train.labels.tolist(), _first_pixels(train), train.resized) == ([2, 14, 14], [1, 2, 3], 3)
    assert (test.labels.tolist(), _first_pixels(test), test.resized) == ([42, 7], [5, 4], 0)


def test_gtsrb_as_its_makers_pack_it(tmp_path: Path) -> None:
    write(tmp_path / "GTSRB" / "Final_Training" / "Images" / "00042" / "00000_00000.ppm", _plain(9))
    assert load_dataset("gtsrb", "train", tmp_path).labels.tolist() == [42]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("Filename;ClassId\n00009.ppm;1\n", r"00009.ppm: cannot be read: No such file"),
        ("Filename;ClassId\n../Images/00000.ppm;1\n", "is not a file name"),
        ("Filename;ClassId\n00000.ppm;one\n", "expected the columns Filename and ClassId"),
        ("Filename;ClassId\n00000.ppm;43\n", "expected labels 0 to 42, got 43 to 43"),
        ("Filename,ClassId\n00000.ppm,1\n", "expected the columns Filename and ClassId"),
        ("Filename;ClassId\n00000.ppm\n", "expected the columns Filename and ClassId"),
        ("\xff\xfe", "expected the columns"),
        ("", "expected images .*, found none"),
    ],
)
def test_a_damaged_table_of_gtsrb(tmp_path: Path, table: str, message: str) -> None:
    place = tmp_path / "gtsrb" / "GTSRB"
    write(place / "Final_Test" / "Images" / "00000.ppm", _plain(4))
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_bytes(table.encode("latin-1"))
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("gtsrb", "test", tmp_path)
    assert "\n" not in str(caught.value)


def test_test_images_of_gtsrb_without_labels(tmp_path: Path) -> None:
    write(tmp_path / "GTSRB" / "Final_Test" / "Images" / "00000.ppm", _plain(4))
    with pytest.raises(DataError, match=r"expected GT-final_test.csv, which holds the labels"):
        load_dataset("gtsrb", "test", tmp_path)


@pytest.mark.parametrize("name", ["00043", "stop"])
def test_a_folder_that_is_no_sign(tmp_path: Path, name: str) -> None:
    write(tmp_path / "GTSRB" / "Training" / name / "0.ppm", _plain(4))
    with pytest.raises(DataError, match=f"{name}: expected class folders 00000 to 00042"):
        load_dataset("gtsrb", "train", tmp_path)


IDS = DATASETS["tiny_imagenet"].classes


@pytest.mark.parametrize("sorted_into_folders", [False, True])
def test_tiny_imagenet(tmp_path: Path, sorted_into_folders: bool) -> None:
    place = tmp_path / "tiny_imagenet" / "tiny-imagenet-200"
    for label in (7, 3):
        write(place / "train" / IDS[label] / "images" / f"{IDS[label]}_0.JPEG", _plain(label, 64, 64))
        (place / "train" / IDS[label] / f"{IDS[label]}_boxes.txt").write_text("")
    if sorted_into_folders:
        write(place / "val" / IDS[3] / "val_1.JPEG", _plain(200, 64, 64))
        write(place / "val" / IDS[9] / "val_0.JPEG", _plain(100, 64, 64))
    else:
        write(place / "val" / "images" / "val_0.JPEG", _plain(100, 64, 64))
        write(place / "val" / "images" / "val_1.JPEG", _plain(200, 64, 64))
        lines = [f"val_1.JPEG\t{IDS[3]}\t0\t32\t44\t62", f"val_0.JPEG\t{IDS[9]}\t52\t55\t57\t59"]
        (place / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    train, test = load_dataset("tiny_imagenet", "train", tmp_path), load_dataset("tiny_imagenet", "test", tmp_path)
    assert (train.labels.tolist(), _first_pixels(train)) == ([3, 7], [3, 7])
    assert (test.labels.tolist(), _first_pixels(test)) == ([3, 9], [200, 100])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val_0.JPEG\tn00000000\t0", "Tiny ImageNet has no class 'n00000000'"),
        ("val_0.JPEG n01443537", "expected a file name and a class id on each line"),
        ("../images/val_0.JPEG\tn01443537", "is not a file name"),
        ("val_7.JPEG\tn01443537", r"val_7.JPEG: cannot be read: No such file"),
    ],
)
def test_a_damaged_table_of_tiny_imagenet(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path / "val" / "images" / "val_0.JPEG", _plain(0, 64, 64))
    (tmp_path / "val" / "val_annotations.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        load_dataset("tiny_imagenet", "test", tmp_path)


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg", "jpeg", "ppm", "pgm", "bmp", "webp", "tif", "TIFF", "gif"])
def test_class_folders_of_a_known_data_set(tmp_path: Path, suffix: str) -> None:
    for label in (8, 0):
        write(tmp_path / "cifar10" / "test" / DATASETS["cifar10"].classes[label] / f"a.{suffix}", _plain(7 * label))
    (tmp_path / "cifar10" / "test" / "ship" / "notes.txt").write_text("no image")
    data = load_dataset("cifar10", "test", tmp_path)
    assert (data.labels.tolist(), _first_pixels(data)) == ([0, 8], [0, 56])


def test_a_class_folder_with_another_name(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat" / "a.png", _plain(0))
    for name in ("lion", "tiger"):
        write(tmp_path / "train" / name / "a.png", _plain(0))
    with pytest.raises(DataError, match=r"lion and 1 more: CIFAR-10 has no such class; its 10 classes are airplane, "):
        load_dataset("cifar10", "train", tmp_path)


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train: expected images \(\*.png, \*.jpg"):
        load_dataset("cifar10", "train", tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_a_corrupt_image_is_named(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "train" / "cat" / "a.png", pixels(0))
    (tmp_path / "train" / "cat" / "b.png").write_bytes(content)
    with pytest.raises(DataError, match=r"cat.b.png: cannot be decoded: ") as caught:
        load_dataset("cifar10", "train", tmp_path)
    assert "\n" not in str(caught.value)
    assert " at 0x" not in str(caught.value)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat" / "a.png", pixels(0))
    whole = (tmp_path / "train" / "cat" / "a.png").read_bytes()
    (tmp_path / "train" / "cat" / "a.png").write_bytes(whole[:-200])
    with pytest.raises(DataError, match=r"a.png: cannot be decoded: .*truncated"):
        load_dataset("cifar10", "train", tmp_path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path, suffix: str) -> None:
    """Pillow's own conversion calls everything from 255 of 65535 white."""
    values = np.array([0, 255, 256, 32_767, 32_768, 65_535] + [1000] * 1018, np.uint16).reshape(32, 32)
    write(tmp_path / "train" / "cat" / f"a.{suffix}", values)
    data = load_dataset("cifar10", "train", tmp_path)
    assert data.images[0, :, 0, :7].tolist() == [[0, 0, 1, 127, 128, 255, 3]] * 3


@pytest.mark.parametrize(("dtype", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_numbers_of_no_known_range_are_refused(tmp_path: Path, dtype: type, mode: str) -> None:
    write(tmp_path / "train" / "cat" / "a.tif", np.full((32, 32), 100, dtype))
    with pytest.raises(
        DataError, match=rf"a.tif: cannot be decoded: its pixel range is unknown .*mode {mode}\); convert"
    ):
        load_dataset("cifar10", "train", tmp_path)


def test_a_palette_with_transparency_is_read_without_a_word(tmp_path: Path) -> None:
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([9, 9, 9, 10, 20, 30])
    (tmp_path / "train" / "cat").mkdir(parents=True)
    palette.save(tmp_path / "train" / "cat" / "a.png", transparency=bytes([0, 128]))
    with warnings.catch_warnings(action="error"):
        data = load_dataset("cifar10", "train", tmp_path)
    assert data.images[0, :, 5, 5].tolist() == [10, 20, 30]
