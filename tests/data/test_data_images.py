"""Labelled images and normalisation, and what is known of each data set."""

from dataclasses import replace

import pytest
import torch

from unbackdoor.data import DATASETS, LabelledImages, normalise
from unbackdoor.errors import DataError, SettingError

CIFAR10 = DATASETS["cifar10"]


def _images(n: int = 4, size: int = 8) -> torch.Tensor:
    return torch.arange(n * 3 * size * size).remainder(256).to(torch.uint8).view(n, 3, size, size)


@pytest.mark.parametrize("name", list(DATASETS))
def test_a_spec_is_consistent(name: str) -> None:
    spec = DATASETS[name]
    assert spec.name == name
    assert spec.num_classes == len(set(spec.classes)) >= 2
    assert spec.size >= 8
    assert all(0 <= value < 1 for value in spec.mean)
    assert all(0 < value <= 1 for value in spec.std)
    assert len(set(spec.splits)) == 2


def test_cifar10_has_ten_classes_of_32_pixels() -> None:
    assert (CIFAR10.num_classes, CIFAR10.size, CIFAR10.flip) == (10, 32, True)
    assert (CIFAR10.classes[0], CIFAR10.classes[9]) == ("airplane", "truck")


@pytest.mark.parametrize(
    ("name", "num_classes", "size", "first", "last"),
    [
        ("cifar100", 100, 32, "apple", "worm"),
        ("gtsrb", 43, 32, "speed limit 20 km/h", "end of no overtaking by vehicles over 3.5 t"),
        ("tiny_imagenet", 200, 64, "n01443537", "n12267677"),
    ],
)
def test_what_is_known_without_the_data(name: str, num_classes: int, size: int, first: str, last: str) -> None:
    spec = DATASETS[name]
    assert (spec.num_classes, spec.size, spec.classes[0], spec.classes[-1]) == (num_classes, size, first, last)


def test_label_order_is_the_alphabets_but_for_traffic_signs() -> None:
    ordered = [name for name in DATASETS if list(DATASETS[name].classes) == sorted(DATASETS[name].classes)]
    assert ordered == ["cifar10", "cifar100", "tiny_imagenet"]


def test_a_traffic_sign_is_never_mirrored() -> None:
    assert not DATASETS["gtsrb"].flip
    assert DATASETS["gtsrb"].classes[33:35] == ("turn right ahead", "turn left ahead")


def test_a_part_is_called_train_or_test() -> None:
    assert DATASETS["tiny_imagenet"].stored_split("test") == "valid"
    with pytest.raises(SettingError, match="split: expected train or test, got 'valid'"):
        DATASETS["tiny_imagenet"].stored_split("valid")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.long), "expected uint8 images"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.long), r"\(2, 1, 4, 4\)"),
        (torch.zeros(2, 3, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.long), r"\(2, 3, 4\)"),
        (_images(2), torch.zeros(3, dtype=torch.long), "2 images but labels of shape"),
        (_images(2), torch.tensor([0, 10]), "expected labels 0 to 9, got 0 to 10"),
        (_images(2), torch.tensor([-1, 9]), "expected labels 0 to 9, got -1 to 9"),
    ],
)
def test_what_does_not_fit_is_refused(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        LabelledImages(images, labels, CIFAR10)


def test_length_slices_and_masks() -> None:
    data = LabelledImages(_images(4), torch.tensor([3, 1, 2, 1]), CIFAR10)
    assert len(data) == 4
    assert data[1:3].labels.tolist() == [1, 2]
    assert torch.equal(data[data.labels == 1].images, data.images[[1, 3]])
    assert len(data[:0]) == 0
    assert data.to("cpu").labels.tolist() == [3, 1, 2, 1]


def test_the_count_of_resized_images_is_kept() -> None:
    data = LabelledImages(_images(4), torch.tensor([3, 1, 2, 1]), CIFAR10, resized=3)
    assert data[:1].to("cpu").resized == 3


def test_normalise_by_hand() -> None:
    spec = replace(CIFAR10, mean=(0.5, 0.0, 1.0), std=(0.5, 0.25, 2.0))
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    # (0/255 - 0.5)/0.5 = -1; (51/255 - 0)/0.25 = 0.8; (255/255 - 1)/2 = 0
    assert normalise(images, spec).flatten().tolist() == pytest.approx([-1.0, 0.8, 0.0])
    assert normalise(images, spec).dtype == torch.float32
    assert images.flatten().tolist() == [0, 51, 255]
