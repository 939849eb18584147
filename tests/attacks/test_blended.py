"""Blending, by hand."""

import pytest
import torch

from unbackdoor.attacks.blended import Blended
from unbackdoor.errors import SettingError


@pytest.mark.parametrize(
    ("alpha", "pixel", "pattern", "result"),
    [
        (0.2, 100, 250, 130),  # 80 + 50
        (0.2, 101, 250, 131),  # 80.8 + 50
        (0.2, 0, 255, 51),
        (0.2, 255, 0, 204),
        (0.2, 7, 7, 7),
        (1.0, 7, 200, 200),
        (0.5, 0, 255, 128),  # 127.5, to the even neighbour
    ],
)
def test_arithmetic(alpha: float, pixel: int, pattern: int, result: int) -> None:
    attack = Blended(alpha=alpha).with_tensors(pattern=torch.full((3, 2, 2), pattern, dtype=torch.uint8))
    assert attack.stamp(torch.full((1, 3, 2, 2), pixel, dtype=torch.uint8)).unique().tolist() == [result]


def test_each_pixel_has_its_own_place_in_the_pattern() -> None:
    pattern = torch.arange(12, dtype=torch.uint8).view(3, 2, 2) * 20
    stamped = Blended(alpha=1).with_tensors(pattern=pattern).stamp(torch.zeros(2, 3, 2, 2, dtype=torch.uint8))
    assert torch.equal(stamped, pattern.expand(2, 3, 2, 2))


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.1, float("nan")])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(SettingError, match="blended alpha"):
        Blended(alpha=alpha)
