"""The defender's clean images: the saved indices are the ones that are used."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unbackdoor.data import DATASETS, LabelledImages, Subset, clean_subset
from unbackdoor.errors import DataError, OutputError, SettingError


@pytest.fixture
def data() -> LabelledImages:
    """100 images, each filled with its own number, of class number // 10."""
    numbers = torch.arange(100)
    return LabelledImages(
        numbers.to(torch.uint8).view(100, 1, 1, 1).expand(100, 3, 4, 4), numbers // 10, DATASETS["cifar10"]
    )


def test_the_indices_are_those_of_the_images(data: LabelledImages, tmp_path: Path) -> None:
    subset = clean_subset(data, count=20, seed=3)
    assert subset.data.images[:, 0, 0, 0].tolist() == subset.indices.tolist()
    assert subset.data.labels.tolist() == (subset.indices // 10).tolist()
    assert len(set(subset.indices.tolist())) == len(subset) == 20
    subset.save(tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["indices"] == subset.indices.tolist()
    again = Subset.load(tmp_path / "s.json", data)
    assert again.indices.equal(subset.indices)
    assert again.data.images.equal(subset.data.images)
    assert again.data.labels.equal(subset.data.labels)
    assert replace(again, data=data, indices=data.labels) == replace(subset, data=data, indices=data.labels)


def test_a_draw_depends_on_the_seed_alone_and_begins_with_the_smaller_ones(data: LabelledImages) -> None:
    state = torch.random.get_rng_state()
    long, short = clean_subset(data, share=0.5, seed=1), clean_subset(data, share=0.05, seed=1)
    assert short.indices.tolist() == long.indices[:5].tolist()
    assert clean_subset(data, share=0.5, seed=2).indices.tolist() != long.indices.tolist()
    assert torch.random.get_rng_state().equal(state)


@pytest.mark.parametrize(("share", "n"), [(0.05, 5), (0.019, 1), (1.0, 100), (1, 100), (0.29, 28)])
def test_a_share_is_cut_off_as_the_field_does(data: LabelledImages, share: float, n: int) -> None:
    assert len(clean_subset(data, share=share, seed=0)) == n == int(100 * share)


def test_it_is_a_copy(data: LabelledImages) -> None:
    data = replace(data, images=data.images.clone())
    subset = clean_subset(data, count=5, seed=0)
    subset.data.images.fill_(0)
    assert data.images[subset.indices, 0, 0, 0].tolist() == subset.indices.tolist()


@pytest.mark.parametrize(
    ("share", "count", "message"),
    [
        (None, None, "expected a share or a count"),
        (0.1, 10, "expected a share or a count"),
        (0.0, None, "expected a share above 0"),
        (1.1, None, "expected a share above 0"),
        (float("nan"), None, "expected a share above 0"),
        (0.009, None, "expected 1 to 100 images, got 0"),
        (None, 0, "expected 1 to 100 images, got 0"),
        (None, -1, "expected 1 to 100 images, got -1"),
        (None, 101, "expected 1 to 100 images, got 101"),
    ],
)
def test_what_cannot_be_drawn(data: LabelledImages, share: float | None, count: int | None, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        clean_subset(data, share=share, count=count, seed=0)


def test_other_data_are_refused(data: LabelledImages, tmp_path: Path) -> None:
    subset = clean_subset(data, share=0.1, seed=0)
    file = tmp_path / "s.json"
    subset.save(file)
    with pytest.raises(OutputError, match="already exists"):
        subset.save(file)
    subset.save(file, overwrite=True)
    with pytest.raises(
        DataError, match="expected the 100 images of 'cifar10' that it was drawn from, got 99 of 'cifar10'"
    ):
        Subset.load(file, data[:99])
    with pytest.raises(DataError, match="got 100 of 'gtsrb'"):
        Subset.load(file, replace(data, spec=DATASETS["gtsrb"]))
    labels, images = data.labels.clone(), data.images.clone()
    labels[99] = 0
    images[subset.indices[3], 0, 0, 0] += 1  # one pixel of one image: a trigger, say
    for other in (replace(data, labels=labels), replace(data, images=images)):
        with pytest.raises(
            DataError, match="expected the version of 'cifar10' with digest .*some may be poisoned"
        ) as caught:
            Subset.load(file, other)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema_version", 2),
        ("data", 3),
        ("images", "100"),
        ("images", True),
        ("digest", None),
        ("seed", 0.5),
        ("share", "0.1"),
        ("count", 1.0),
        ("indices", "0"),
        ("indices", []),
        ("indices", [0, 0]),
        ("indices", [-1]),
        ("indices", [100]),
        ("indices", [0.0]),
        ("indices", [True]),
    ],
)
def test_a_damaged_record(data: LabelledImages, tmp_path: Path, key: str, value: object) -> None:
    file = tmp_path / "s.json"
    clean_subset(data, share=0.1, seed=0).save(file)
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(DataError, match=key):
        Subset.load(file, data)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_no_record(data: LabelledImages, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.json").write_bytes(content)
    with pytest.raises(DataError, match="expected the JSON of a clean subset"):
        Subset.load(tmp_path / "s.json", data)
    with pytest.raises(DataError, match="expected the JSON of a clean subset"):
        Subset.load(tmp_path / "none.json", data)
