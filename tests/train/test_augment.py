"""The batched crop and mirror against a loop over images."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unbackdoor.data.augment import augment, rotate


def _loop(images: Tensor, *, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """One image at a time: pad, crop, mirror."""
    n, _, height, width = images.shape
    coins = torch.rand(n, 1, generator=generator)[:, 0] < 0.5 if flip else torch.zeros(n, dtype=torch.bool)
    offsets = (
        torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)[..., 0] if padding else torch.zeros(2, n)
    )
    result = []
    for i, image in enumerate(images):
        row, column = (int(offset) for offset in offsets[:, i])
        crop = F.pad(image, (padding,) * 4)[:, row : row + height, column : column + width]
        result.append(crop.flip(-1) if coins[i] else crop)
    return torch.stack(result)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("shape", [(16, 3, 32, 32), (5, 3, 7, 9), (1, 1, 2, 2)])
def test_against_a_loop(shape: tuple[int, ...], padding: int, flip: bool) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before = images.clone()
    got = augment(images, padding=padding, flip=flip, generator=torch.Generator().manual_seed(2))
    expected = _loop(images, padding=padding, flip=flip, generator=torch.Generator().manual_seed(2))
    assert torch.equal(got, expected)
    assert got.dtype == torch.uint8
    assert torch.equal(images, before)


def test_neither_crop_nor_flip_is_the_identity(generator: torch.Generator) -> None:
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(augment(images, padding=0, flip=False, generator=generator), images)


def test_half_of_the_images_are_mirrored_and_every_offset_occurs(generator: torch.Generator) -> None:
    ramp = torch.arange(1, 9).expand(2000, 1, 8, 8).to(torch.uint8)  # columns 1 to 8
    mirrored = augment(ramp, padding=0, flip=True, generator=generator)[:, 0, 0, 0] == 8
    assert 900 < int(mirrored.sum()) < 1100
    first = augment(ramp, padding=2, flip=False, generator=generator)[:, 0, 4, 3]  # column 4, moved by -2 to 2
    assert first.unique().tolist() == [2, 3, 4, 5, 6]
    assert first.bincount()[2:].min() > 300


def test_each_image_has_draws_of_its_own(generator: torch.Generator) -> None:
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(64, 1, 8, 8)
    assert len(augment(images, padding=4, flip=True, generator=generator).flatten(1).unique(dim=0)) > 30


def test_a_share_of_the_images_is_cropped(generator: torch.Generator) -> None:
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(1000, 1, 8, 8)
    moved = (augment(images, padding=4, flip=False, crop_share=0.8, generator=generator) != images).flatten(1).any(1)
    # Of 800 cropped images one in 81 is cropped to its own place.
    assert 740 < int(moved.sum()) < 840
    assert torch.equal(augment(images, padding=4, flip=False, crop_share=0.0, generator=generator), images)


def test_turning_by_nothing_is_the_identity(generator: torch.Generator) -> None:
    images = torch.rand(5, 3, 8, 8, generator=generator)
    assert torch.allclose(rotate(images, degrees=0, share=1.0, generator=generator), images, atol=1e-6)
    assert torch.equal(rotate(images, degrees=90, share=0.0, generator=generator), images)


class Angles:
    """Stands in for torch.rand: first the angles, then the coins."""

    def __init__(self, *draws: list[float]) -> None:
        self.draws = list(draws)

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        assert n == len(self.draws[0])
        return torch.tensor(self.draws.pop(0))


def test_a_quarter_turn_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # A draw of 1 is the largest angle. The output at (x, y), y downwards, is looked up at
    # (x cos - y sin, x sin + y cos). At +90 degrees that is (-y, x): the top right corner
    # (1, -1) shows what was in the bottom right one (1, 1).
    monkeypatch.setattr(torch, "rand", Angles([1.0, 0.0], [0.0, 0.0]))
    image = torch.tensor([[1.0, 2], [3, 4]]).expand(2, 1, 2, 2)
    turned = rotate(image, degrees=90, share=0.5, generator=torch.Generator())
    assert torch.allclose(turned[0, 0], torch.tensor([[2.0, 4], [1, 3]]), atol=1e-5)
    assert torch.allclose(turned[1, 0], torch.tensor([[3.0, 1], [4, 2]]), atol=1e-5)  # a draw of 0: the other way


def test_a_small_turn_moves_the_right_edge_up_or_down_by_its_sine(monkeypatch: pytest.MonkeyPatch) -> None:
    # A ramp over rows, value = row: the output at (x, y) shows row y cos a + x sin a, in units of half the side. At the
    # middle of the right side of 33 pixels, x = 32/33 and y = 0: 16.5 * 32/33 * sin a = 16 sin a below the middle.
    monkeypatch.setattr(torch, "rand", Angles([1.0, 0.0, 0.5], [0.0, 0.0, 0.0]))
    ramp = torch.arange(33.0).view(1, 1, 33, 1).expand(3, 1, 33, 33)
    turned = rotate(ramp, degrees=5, share=1.0, generator=torch.Generator())
    sine = math.sin(math.radians(5))
    assert turned[:, 0, 16, 32].tolist() == pytest.approx([16 + 16 * sine, 16 - 16 * sine, 16], abs=1e-3)
    assert turned[:, 0, 16, 16].tolist() == pytest.approx([16, 16, 16], abs=1e-4)  # the centre stays


def test_each_image_is_turned_by_an_angle_of_its_own(generator: torch.Generator) -> None:
    images = torch.rand(1, 3, 16, 16, generator=generator).expand(64, 3, 16, 16)
    before = images.clone()
    turned = rotate(images, degrees=10, share=0.5, generator=generator)
    same = (turned == images).flatten(1).all(1)
    assert 20 <= int(same.sum()) <= 44
    assert len(turned[~same].flatten(1).unique(dim=0)) == int((~same).sum())
    assert torch.equal(images, before)


def test_what_is_turned_in_from_outside_is_zero(generator: torch.Generator) -> None:
    turned = rotate(torch.ones(20, 1, 16, 16), degrees=45, share=1.0, generator=generator)
    assert float(turned.min()) == 0
    assert torch.allclose(turned[:, 0, 6:10, 6:10], torch.ones(20, 4, 4), atol=1e-5)
