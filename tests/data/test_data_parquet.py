"""The hub's parquet layout, on files of a few images made here."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_images import encoded as _png
from made_images import pixels as _pixels

from unbackdoor.data import DATASETS, load_dataset
from unbackdoor.errors import DataError, SettingError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

CIFAR10 = DATASETS["cifar10"]


def _row(image: bytes | None) -> dict:
    return {"bytes": image, "path": None}


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes one shard into tmp_path/cifar10 and returns tmp_path."""

    def write(images: list, labels: list, *, name: str = "train-00000-of-00001", column: str = "img") -> Path:
        folder = tmp_path / "cifar10"
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table({column: images, "label": labels}), folder / f"{name}.parquet")
        return tmp_path

    return write


@pytest.mark.parametrize("column", ["img", "image"])
def test_pixels_and_labels_arrive_unchanged(write: Write, column: str) -> None:
    root = write([_row(_png(_pixels(0))), _row(_png(_pixels(1)))], [7, 2], column=column)
    data = load_dataset("cifar10", "train", root)
    assert data.images.shape == (2, 3, 32, 32)
    assert data.images.is_contiguous()
    assert np.array_equal(data.images[1].permute(1, 2, 0).numpy(), _pixels(1))
    assert data.labels.tolist() == [7, 2]


def test_shards_are_read_in_order(write: Write) -> None:
    for shard in (1, 0, 2):
        root = write([_row(_png(_pixels(shard)))], [shard], name=f"train-0000{shard}-of-00003")
    assert load_dataset("cifar10", "train", root).labels.tolist() == [0, 1, 2]


def test_grey_and_transparent_images_become_rgb(write: Write) -> None:
    grey, alpha = np.full((32, 32), 9, np.uint8), np.full((32, 32, 4), 9, np.uint8)
    root = write([_row(_png(grey)), _row(_png(alpha))], [0, 1])
    assert load_dataset("cifar10", "train", root).images.unique().tolist() == [9]


def test_the_folder_itself_and_the_environment_are_looked_at(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write([_row(_png(_pixels(0)))], [4], name="test-00000-of-00001")
    assert load_dataset("cifar10", "test", root / "cifar10").labels.tolist() == [4]
    monkeypatch.setenv("UNBACKDOOR_DATA", str(root))
    assert load_dataset("cifar10", "test").labels.tolist() == [4]
    monkeypatch.delenv("UNBACKDOOR_DATA")
    monkeypatch.chdir(root)
    with pytest.raises(DataError, match="not found"):
        load_dataset("cifar10", "test")


def test_progress_is_told(write: Write) -> None:
    told: list[tuple[int, int]] = []
    root = write([_row(_png(_pixels(0)))] * 1001, [0] * 1001)
    load_dataset("cifar10", "train", root, progress=lambda done, total: told.append((done, total)))
    assert told == [(1000, 1001)]


GOOD = _png(_pixels(0))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([_row(_png(_pixels(0, 31)))], [0], "row 0 of train: expected 32x32 pixels, got 31x31"),
        ([_row(GOOD), _row(GOOD[:60])], [0, 0], "row 1 of train: cannot be decoded"),
        ([_row(b"no image")], [0], "row 0 of train: cannot be decoded"),
        ([_row(GOOD), _row(None)], [0, 0], "row 1 of train: cannot be decoded"),
        ([1, 2], [0, 0], "row 0 of train: cannot be decoded"),
        ([_row(GOOD)], [10], "expected labels 0 to 9, got 10 to 10"),
        ([_row(GOOD)], [-1], "expected labels 0 to 9, got -1 to -1"),
        ([_row(GOOD)], ["cat"], "labels of train are not whole numbers"),
        ([_row(GOOD)], [1.5], "labels of train are not whole numbers"),
        ([_row(GOOD), _row(GOOD)], [1, None], "labels of train are not whole numbers"),
        ([], [], "the train files hold no images"),
    ],
)
def test_a_bad_file_is_refused(write: Write, images: list, labels: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset("cifar10", "train", write(images, labels))


def test_a_huge_image_is_refused_before_it_is_decoded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match="got 4000x4000"):
        load_dataset("cifar10", "train", write([_row(_png(np.zeros((4000, 4000), np.uint8)))], [0]))


def test_every_shard_needs_the_columns(write: Write) -> None:
    write([_row(GOOD)], [0], name="train-00000-of-00002")
    root = write([_row(GOOD)], [0], name="train-00001-of-00002", column="picture")
    with pytest.raises(
        DataError, match=r"00001-of-00002.parquet: expected the columns image or img and label, got pict"
    ):
        load_dataset("cifar10", "train", root)


def test_garbage_is_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 garbage")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        load_dataset("cifar10", "train", tmp_path)


def test_a_missing_folder_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset("cifar10", "test", tmp_path / "nowhere")
    message = str(caught.value)
    assert str(tmp_path / "nowhere" / "cifar10") in message
    assert "test-*.parquet" in message
    assert "--data-dir" in message
    assert "\n" not in message


def test_an_unknown_data_set(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="unknown data set 'cifar11': did you mean 'cifar10'"):
        load_dataset("cifar11", "test", tmp_path)


def test_bytes_without_a_struct(write: Write) -> None:
    root = write([_png(_pixels(0)), _png(_pixels(1))], [3, 4])
    assert np.array_equal(load_dataset("cifar10", "train", root).images[1].permute(1, 2, 0).numpy(), _pixels(1))
    with pytest.raises(
        DataError, match=r"row 1 of train: cannot be decoded: expected the bytes of an image, got NoneType"
    ):
        load_dataset("cifar10", "train", write([_png(_pixels(0)), None], [3, 4]))


def test_the_row_of_a_bad_image_is_counted_in_its_file(write: Write) -> None:
    write([_row(GOOD)] * 3, [0, 0, 0], name="train-00000-of-00002")
    root = write([_row(GOOD), _row(b"no image")], [0, 0], name="train-00001-of-00002")
    with pytest.raises(
        DataError, match=r"train-00001-of-00002.parquet: row 1 of train: cannot be decoded: it is not an image"
    ):
        load_dataset("cifar10", "train", root)


@pytest.mark.parametrize("place", ["", "cifar100", "cifar100/data", "data"])
def test_cifar100_has_fine_labels_in_a_clone_of_the_hub(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    columns = {"img": [_row(GOOD)], "fine_label": [99], "coarse_label": [19]}
    pq.write_table(pa.table(columns), tmp_path / place / "test-00000-of-00001.parquet")
    assert load_dataset("cifar100", "test", tmp_path).labels.tolist() == [99]


def test_other_sizes_are_resized_and_counted_where_that_is_allowed(tmp_path: Path) -> None:
    sizes = [(32, 32), (15, 15), (64, 48)]
    images = [_row(_png(np.full((height, width, 3), 40 + width, np.uint8))) for width, height in sizes]
    pq.write_table(pa.table({"image": images, "label": [0, 1, 2]}), tmp_path / "train.parquet")
    data = load_dataset("gtsrb", "train", tmp_path)
    assert data.images.shape == (3, 3, 32, 32)
    assert [image.unique().tolist() for image in data.images] == [[72], [55], [104]]
    assert data.resized == 2
    assert load_dataset("gtsrb", "train", tmp_path).resized == 2  # from the cache


def test_resizing_is_pillows_bilinear_filter(tmp_path: Path) -> None:
    columns = {"image": [_row(_png(_pixels(0, 50, 40)))], "label": [0]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    wanted = np.asarray(Image.fromarray(_pixels(0, 50, 40)).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(load_dataset("gtsrb", "train", tmp_path).images[0].permute(1, 2, 0).numpy(), wanted)


def test_a_huge_image_is_not_even_resized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbackdoor.data.decode.MOST_PIXELS", 1000)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    pq.write_table(pa.table({"image": [_row(_png(_pixels(0, 40)))], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"expected 32x32 pixels \(or at most 1,000 in all\), got 40x40"):
        load_dataset("gtsrb", "train", tmp_path)


def _with_names(file: Path, names: list[str]) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = pa.table({"image": [_row(GOOD)], "label": [0]})
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(about), file)


def test_another_number_of_classes_is_another_data_set(tmp_path: Path) -> None:
    _with_names(tmp_path / "train.parquet", [str(i) for i in range(10)])
    assert len(load_dataset("cifar10", "train", tmp_path)) == 1  # other words are fine
    with pytest.raises(DataError, match=r"train.parquet: expected the 43 classes of GTSRB, the file names 10"):
        load_dataset("gtsrb", "train", tmp_path)


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    names = list(CIFAR10.classes)
    names[3], names[5] = names[5], names[3]
    _with_names(tmp_path / "train.parquet", names)
    with pytest.raises(
        DataError, match="expected the classes in the order of CIFAR-10; label 3 is 'dog' here and 'cat' there"
    ):
        load_dataset("cifar10", "train", tmp_path)


@pytest.mark.parametrize(
    ("name", "images", "classes"),
    [("cifar10", 10_000, [1000] * 10), ("gtsrb", 12_630, None), ("tiny_imagenet", 10_000, [50] * 200)],
)
def test_the_real_test_sets(real_data: Path, name: str, images: int, classes: list[int] | None) -> None:
    if not (real_data / name).is_dir():
        pytest.skip(f"no {name} in the folder of real data")
    spec = DATASETS[name]
    data = load_dataset(name, "test", real_data)
    assert data.images.shape == (images, 3, spec.size, spec.size)
    counts = data.labels.bincount(minlength=spec.num_classes)
    assert counts.tolist() == classes if classes else counts.min() > 0
    if name != "gtsrb":
        share = data.images[::5].float().mean((0, 2, 3)) / 255
        assert share.tolist() == pytest.approx(spec.mean, abs=0.01)
    again = load_dataset(name, "test", real_data, progress=lambda *_: pytest.fail("decoded again"))
    assert again.labels.equal(data.labels)
    assert again.images[::100].equal(data.images[::100])
