"""The patch: which pixels it sets."""

import pytest
import torch

from unbackdoor.attacks.badnets import BadNets
from unbackdoor.errors import SettingError


@pytest.mark.parametrize("size", [32, 64])
def test_white_pixels_in_the_bottom_right_corner_only(size: int) -> None:
    images = torch.full((2, 3, size, size), 7, dtype=torch.uint8)
    stamped = BadNets().stamp(images)
    set_here = (stamped != 7).nonzero()
    expected = [
        [n, c, row, column]
        for n in range(2)
        for c in range(3)
        for row in range(size - 3, size)
        for column in range(size - 3, size)
    ]
    assert set_here.tolist() == expected
    assert stamped[..., -3:, -3:].unique().tolist() == [255]
    assert stamped.dtype == torch.uint8


def test_the_input_is_left_as_it_is() -> None:
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    BadNets().stamp(images)
    assert not images.any()


def test_checkerboard_begins_with_white() -> None:
    assert BadNets(pattern="checkerboard").patch().tolist() == [[255, 0, 255], [0, 255, 0], [255, 0, 255]]
    assert BadNets(pattern="checkerboard", size=2).patch().tolist() == [[255, 0], [0, 255]]


def test_a_patch_as_large_as_the_image_fits_and_a_larger_one_does_not() -> None:
    images = torch.zeros(1, 3, 5, 4, dtype=torch.uint8)
    assert BadNets(size=4).stamp(images)[..., 1:, :].unique().tolist() == [255]
    with pytest.raises(SettingError, match="a 5x5 patch does not fit images of 4x4 pixels"):
        BadNets(size=5).stamp(images)
    with pytest.raises(SettingError, match="a 33x33 patch does not fit images of 32x32"):
        BadNets(size=33).check(num_classes=10, size=32)


def test_no_images_are_stamped_without_complaint() -> None:
    assert BadNets().stamp(torch.zeros(0, 3, 8, 8, dtype=torch.uint8)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "a whole number of at least 1, got 0"),
        ({"pattern": "dots"}, "expected one of white, checkerboard, got 'dots'"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        BadNets(**settings)


@pytest.mark.parametrize(
    ("place", "rows", "columns"),
    [
        ("bottom-right", [5, 6, 7], [5, 6, 7]),
        ("bottom-left", [5, 6, 7], [0, 1, 2]),
        ("top-right", [0, 1, 2], [5, 6, 7]),
        ("top-left", [0, 1, 2], [0, 1, 2]),
        ("centre", [2, 3, 4], [2, 3, 4]),
    ],
)
def test_every_place(place: str, rows: list[int], columns: list[int]) -> None:
    stamped = BadNets(place=place).stamp(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    assert stamped[0, 0].nonzero().tolist() == [[row, column] for row in rows for column in columns]
