"""The warp on images so small that it can be done by hand."""

import pytest
import torch
from prepared_attacks import data_of
from torch import Tensor

from unbackdoor.attacks.wanet import WaNet, warp
from unbackdoor.errors import SettingError


def _fixed(height: int, width: int, *, column: float = 0, row: float = 0, **settings: float) -> WaNet:
    """The same displacement everywhere."""
    field = torch.zeros(height, width, 2)
    field[..., 0], field[..., 1] = column, row
    return WaNet(**settings).with_tensors(field=field)


def _ramp() -> Tensor:
    """(1, 3, 4, 4): columns 0, 10, 20, 30, the same in each row."""
    return torch.tensor([0, 10, 20, 30], dtype=torch.uint8).expand(1, 3, 4, 4).contiguous()


@pytest.mark.parametrize("size", [4, 32])
def test_a_zero_field_is_the_identity(size: int) -> None:
    images = data_of(size).images
    assert torch.equal(_fixed(size, size).stamp(images), images)


# On four pixels a side, neighbours lie 2/3 apart in [-1, 1]. With s = 0.5 and H = 4 a field of 16/3 moves the lookup by
# 0.5 * 16/3 / 4 = 2/3: one pixel; 8/3 moves it by half a pixel. What lies outside is clipped to the border.
@pytest.mark.parametrize(
    ("field", "columns"),
    [(16 / 3, [10, 20, 30, 30]), (8 / 3, [5, 15, 25, 30]), (-16 / 3, [0, 0, 10, 20]), (1e3, [30, 30, 30, 30])],
)
def test_a_field_by_hand(field: float, columns: list[int]) -> None:
    moved = _fixed(4, 4, column=field).stamp(_ramp())
    assert moved[0].tolist() == [[columns] * 4] * 3
    # The second component moves rows and leaves columns alone.
    assert torch.equal(_fixed(4, 4, row=field).stamp(_ramp()), _ramp())
    assert torch.equal(_fixed(4, 4, row=field).stamp(_ramp().mT.contiguous()), moved.mT)


def test_the_grid_is_clipped_and_rescaled() -> None:
    # The identity is -1, -1/3, 1/3, 1; twice that is -2, -2/3, 2/3, 2.
    grid = _fixed(4, 4, rescale=2.0).grid(torch.empty(0))
    assert grid[0, :, 0].tolist() == pytest.approx([-1, -2 / 3, 2 / 3, 1])
    assert grid[:, 0, 1].tolist() == pytest.approx([-1, -2 / 3, 2 / 3, 1])
    strong = WaNet(s=100.0).prepare(data_of(8), seed=0).grid(torch.empty(0))
    assert (float(strong.min()), float(strong.max())) == (-1, 1)


def test_the_field_is_divided_by_its_mean_size() -> None:
    # Enlarged to its own size it stays the control grid, whose mean absolute value is 1.
    field = WaNet(k=8).prepare(data_of(8), seed=0).tensors["field"]
    assert field.shape == (8, 8, 2)
    assert float(field.abs().mean()) == pytest.approx(1)
    assert float(field.abs().max()) < 3  # uniform in [-1, 1] over a mean near 1/2


def test_noise_mode_keeps_labels_and_moves_less_than_a_pixel() -> None:
    # The jitter is at most 1/H = 1/32, and neighbours lie 2/31 apart: less than half a pixel. Columns rise by 8.
    images = (torch.arange(32, dtype=torch.uint8) * 8).expand(6, 3, 32, 32).contiguous()
    labels = torch.arange(6)
    generator = torch.Generator().manual_seed(0)
    mixed = _fixed(32, 32).mix(images, labels, count=1, num_classes=10, generator=generator)
    assert (mixed.attacked, mixed.cover) == (1, 2)
    assert mixed.labels.tolist() == [0, 1, 2, 3, 4, 5]  # the attacker wants class 0
    moved = (mixed.images.int() - images.int()).abs().amax((1, 2, 3))
    assert moved[0] == 0  # the field is zero
    assert 0 < int(moved[1:3].max()) <= 4
    assert moved[3:].tolist() == [0, 0, 0]
    assert not torch.equal(mixed.images[1], mixed.images[2])  # a jitter of its own


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(SettingError, match=r"its field was made for \(4, 4\) pixels, got \(5, 5\)"):
        _fixed(4, 4).stamp(torch.zeros(1, 3, 5, 5, dtype=torch.uint8))


def test_warping_nothing_is_a_copy() -> None:
    empty = torch.zeros(0, 3, 4, 4, dtype=torch.uint8)
    assert warp(empty, torch.zeros(0, 4, 4, 2)) is not empty


@pytest.mark.parametrize(
    "setting", [{"k": 1}, {"s": -1.0}, {"s": float("nan")}, {"rescale": -1.0}, {"cross_ratio": -1.0}]
)
def test_settings_out_of_range(setting: dict) -> None:
    with pytest.raises(SettingError, match=f"wanet {next(iter(setting))}"):
        WaNet(**setting)
