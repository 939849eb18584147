"""The pattern is smooth, has its range, and is added."""

import math

import pytest
import torch
from prepared_attacks import data_of

from unbackdoor.attacks.low_frequency import LowFrequency, low_pass
from unbackdoor.errors import SettingError


def test_addition_and_clipping() -> None:
    pattern = torch.tensor([0, 10, 51, 51], dtype=torch.uint8).expand(3, 1, 4)
    images = torch.tensor([200, 200, 204, 230], dtype=torch.uint8).expand(1, 3, 1, 4)
    assert LowFrequency().with_tensors(pattern=pattern).stamp(images)[0, 0, 0].tolist() == [200, 210, 255, 255]


@pytest.mark.parametrize(("periods", "cutoff", "gain"), [(0, 2, 1.0), (2, 2, math.exp(-0.5)), (4, 2, math.exp(-2))])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_gain_of_a_pure_wave(periods: int, cutoff: float, gain: float, axis: int) -> None:
    # cos(2 pi u j / 16) is an eigenvector of any filter; the Gaussian's gain is exp(-u^2 / (2 cutoff^2)).
    wave = torch.cos(2 * math.pi * periods * torch.arange(16, dtype=torch.float64) / 16)
    plane = wave[:, None].expand(16, 12) if axis == 0 else wave.expand(12, 16)
    assert torch.allclose(low_pass(plane, cutoff), gain * plane)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("amplitude", [51.0, 20.0])
def test_its_range_and_its_spectrum(size: int, amplitude: float) -> None:
    attack = LowFrequency(amplitude=amplitude).prepare(data_of(size), seed=3)
    pattern = attack.tensors["pattern"]
    assert (int(pattern.min()), int(pattern.max())) == (0, amplitude)
    energy = torch.fft.fft2(pattern.double() - pattern.double().mean((1, 2), keepdim=True)).abs().square().sum(0)
    u = torch.fft.fftfreq(size, d=1 / size).abs()
    high = torch.maximum(u[:, None], u) > 8  # four times the cutoff, where the gain is exp(-8)
    # What is left there comes from rounding to 8 bits: a variance of 1/12 a pixel, spread evenly over the spectrum.
    assert float(energy[high].mean() / size**2 / 3) == pytest.approx(1 / 12, rel=0.2)
    assert float(energy[~high].mean() / size**2 / 3) > 5


def test_the_residual_is_the_same_for_all_images() -> None:
    attack = LowFrequency().prepare(data_of(), seed=3)
    dark = data_of().images // 2  # nothing is clipped
    residuals = attack.stamp(dark) - dark
    assert torch.equal(residuals, attack.tensors["pattern"].expand_as(residuals))


@pytest.mark.parametrize("setting", [{"amplitude": 0.5}, {"amplitude": 256.0}, {"cutoff": 0.0}])
def test_settings_out_of_range(setting: dict) -> None:
    with pytest.raises(SettingError, match=f"lf {next(iter(setting))}"):
        LowFrequency(**setting)
