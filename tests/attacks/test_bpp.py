"""Fewer colours, by hand, and dithering against a loop over pixels."""

import numpy as np
import pytest
import torch

from unbackdoor.attacks.bpp import BPP, dither
from unbackdoor.errors import SettingError


def _row(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).expand(1, 3, 1, len(values))


@pytest.mark.parametrize(
    ("colours", "values", "result"),
    [
        # 0 and 255, border 127.5
        (2, [0, 100, 127, 128, 255], [0, 0, 0, 255, 255]),
        # 0, 85, 170, 255, borders 42.5, 127.5, 212.5
        (4, [42, 43, 127, 128, 212, 213], [0, 85, 85, 170, 170, 255]),
        # multiples of 255 / 7 = 36.43, rounded
        (8, [0, 36, 73, 109, 146, 182, 219, 255], [0, 36, 73, 109, 146, 182, 219, 255]),
        (8, [18, 19, 54, 55], [0, 36, 36, 73]),  # borders 18.2 and 54.6
        (255, [0, 1, 127, 128, 254, 255], [0, 1, 128, 128, 254, 255]),  # one level fewer than there are
    ],
)
def test_levels_of_a_ramp(colours: int, values: list[int], result: list[int]) -> None:
    assert BPP(colours=colours).stamp(_row(values))[0, 0, 0].tolist() == result


@pytest.mark.parametrize("colours", [2, 3, 8, 32])
@pytest.mark.parametrize("dithering", [False, True])
def test_there_are_as_many_colours_as_asked_for(colours: int, dithering: bool) -> None:
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    levels = BPP(colours=colours, dithering=dithering).stamp(ramp).unique().tolist()
    assert levels == [round(k * 255 / (colours - 1)) for k in range(colours)]


def _naive(image: np.ndarray, colours: int) -> tuple[np.ndarray, float]:
    """One channel, pixel by pixel; also the error that left the image."""
    height, width = image.shape
    work = image.astype(np.float32)
    lost = 0.0
    for row in range(height):
        for column in range(width):
            old = work[row, column]
            level = np.round(np.float32(np.clip(old, 0, 255) / np.float32(255) * np.float32(colours - 1)))
            new = np.float32(level / np.float32(colours - 1) * np.float32(255))
            work[row, column] = new
            for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                part = np.float32((old - new) * np.float32(share / 16))
                if row + down < height and 0 <= column + right < width:
                    work[row + down, column + right] += part
                else:
                    lost += float(part)
    return work, lost


@pytest.mark.parametrize("colours", [2, 4, 6])  # levels are whole numbers
def test_dithering_is_the_loop_and_conserves_the_mean(colours: int) -> None:
    images = torch.randint(0, 256, (3, 3, 7, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    result = dither(images, colours)
    for image, got in zip(images.flatten(0, 1).numpy(), result.flatten(0, 1).numpy(), strict=True):
        expected, lost = _naive(image, colours)
        assert got.tolist() == np.rint(expected).tolist()
        # What goes in comes out, or has left over the border.
        assert float(got.sum()) + lost == pytest.approx(float(image.sum()), abs=0.01)


def test_dithered_grey_stays_grey_on_average() -> None:
    grey = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    assert BPP(colours=2).stamp(grey).unique().tolist() == [0]
    dithered = BPP(colours=2, dithering=True).stamp(grey)
    assert dithered.unique().tolist() == [0, 255]
    assert float(dithered.float().mean()) == pytest.approx(100, abs=5)


def test_negatives_carry_the_error_of_another_image() -> None:
    # Image i is all 20 i; with two colours its error is -20 i up to 120, and 255 - 20 i from 140 on.
    values = [0, 20, 40, 60, 80, 100, 120, 140, 160, 180]
    error = [-v if v < 128 else 255 - v for v in values]
    images = torch.tensor(values, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 2, 2).contiguous()
    labels = torch.arange(10)
    attack = BPP(colours=2, negative_rate=0.45, target=7)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        mixed = attack.mix(images, labels, count=2, num_classes=10, generator=generator)
        assert (mixed.attacked, mixed.cover) == (2, 4)
        assert mixed.labels.tolist() == [7, 7, 2, 3, 4, 5, 6, 7, 8, 9]
        shown = mixed.images[:, 0, 0, 0].tolist()
        assert shown[:2] == [0, 0]
        assert shown[6:] == values[6:]
        for i in range(2, 6):
            others = {min(max(values[i] + error[j], 0), 255) for j in range(10) if j != i}
            assert shown[i] in others
    assert images[:, 0, 0, 0].tolist() == values


def test_a_batch_of_two_has_no_image_but_the_other_one() -> None:
    # Errors of 0 and 140 with two colours are 0 and 115: the negative of 0 is 115, never Q(0) = 0.
    images = torch.tensor([140, 0], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2).contiguous()
    attack = BPP(colours=2, negative_rate=1.0)
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        mixed = attack.mix(images, torch.tensor([1, 2]), count=1, num_classes=10, generator=generator)
        assert mixed.images[:, 0, 0, 0].tolist() == [255, 115]
        assert mixed.labels.tolist() == [0, 2]


@pytest.mark.parametrize("setting", [{"colours": 1}, {"colours": 256}, {"negative_rate": -0.1}, {"negative_rate": 1.1}])
def test_settings_out_of_range(setting: dict) -> None:
    with pytest.raises(SettingError, match=f"bpp {next(iter(setting))}"):
        BPP(**setting)
