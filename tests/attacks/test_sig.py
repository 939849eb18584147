"""The wave at columns where it is known, and the cap by the size of the class."""

import pytest
import torch

from unbackdoor.attacks.sig import SIG
from unbackdoor.errors import SettingError


def test_phase_and_amplitude() -> None:
    # Six periods over 32 columns, sin(2 pi 6 j / 32): at j = 4 it is sin(3 pi / 2) = -1, at 8 sin(3 pi) = 0,
    # at 12 sin(9 pi / 2) = 1.
    wave = SIG().wave(32)
    assert wave[[0, 4, 8, 12]].tolist() == pytest.approx([0, -40, 0, 40], abs=1e-4)
    assert float(wave.abs().max()) <= 40


def test_four_columns_a_period() -> None:
    # W = 24 and f = 6: the sine is 0, 1, 0, -1, ...
    stamped = SIG(delta=40).stamp(torch.full((2, 3, 5, 24), 100, dtype=torch.uint8))
    assert stamped[0, 0, 0].tolist() == [100, 140, 100, 60] * 6
    assert torch.equal(stamped, stamped[:1, :1, :1].expand_as(stamped))  # the same in all rows, channels and images


def test_clipping() -> None:
    images = torch.tensor([10, 250], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4).contiguous()
    stamped = SIG(delta=40, frequency=1).stamp(images)  # 0, 40, 0, -40
    assert stamped[:, 0, 0].tolist() == [[10, 50, 10, 0], [250, 255, 250, 210]]


@pytest.mark.parametrize(("rate", "poisoned", "capped"), [(0.05, 2, False), (0.1, 4, False), (0.5, 4, True)])
def test_the_rate_is_of_all_images_and_capped_by_the_class(rate: float, poisoned: int, capped: bool) -> None:
    labels = torch.arange(40) % 10  # four images a class
    images = torch.full((40, 3, 8, 8), 100, dtype=torch.uint8)
    result = SIG(target=3).poison(images, labels, rate=rate, num_classes=10, generator=torch.Generator().manual_seed(0))
    assert int(result.mask.sum()) == poisoned
    assert labels[result.mask].unique().tolist() == [3]
    assert torch.equal(result.labels, labels)
    if capped:
        assert result.note == ("sig: only 4 of 40 training images have class 3; the rate is 0.1000 instead of 0.5")
        assert result.rate == pytest.approx(0.1)
    else:
        assert result.note == ""


def test_a_class_without_images() -> None:
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    with pytest.raises(SettingError, match="no training image has the target class 3"):
        SIG(target=3).poison(images, labels, rate=0.5, num_classes=10, generator=torch.Generator())


@pytest.mark.parametrize("setting", [{"delta": 0.0}, {"delta": 256.0}, {"frequency": 0.0}, {"frequency": -6.0}])
def test_settings_out_of_range(setting: dict) -> None:
    with pytest.raises(SettingError, match=f"sig {next(iter(setting))}"):
        SIG(**setting)


@pytest.mark.parametrize("setting", [{"frequency": 8.0}, {"frequency": 16.0}, {"delta": 0.4}])
def test_a_wave_that_no_pixel_sees(setting: dict) -> None:
    with pytest.raises(SettingError, match="is 0 in all 16 columns; choose another frequency"):
        SIG(**setting).check(num_classes=10, size=16)
    SIG(frequency=8.0).check(num_classes=10, size=20)
