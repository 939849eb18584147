"""The string is there, unseen, and each image wears it in its own way."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unbackdoor.attacks import load_attack, save_attack
from unbackdoor.attacks.ssba import SSBA
from unbackdoor.data import DATASETS, LabelledImages, load_dataset
from unbackdoor.errors import SettingError

SMALL = SSBA(bits=8, steps=200, width=8)


def _smooth(n: int, seed: int) -> LabelledImages:
    """Blobs of 16x16 pixels: more like photographs than noise is."""
    blobs = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    images = (F.interpolate(blobs, size=16, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)
    return LabelledImages(images, torch.arange(n) % 10, replace(DATASETS["cifar10"], size=16))


@pytest.fixture(scope="module")
def prepared() -> SSBA:
    return SMALL.prepare(_smooth(500, 1), seed=0)


@pytest.fixture(scope="module")
def unseen() -> Tensor:
    return _smooth(100, 2).images


def _own_share(residual: Tensor) -> float:
    """The share of the residuals' energy that is not common to all images."""
    return 1 - float(residual.mean(0).square().mean() / residual.square().mean())


def test_the_decoder_reads_the_string_in_8_bit_images_that_it_never_saw(prepared: SSBA, unseen: Tensor) -> None:
    string = prepared.tensors["string"].bool()
    assert float((prepared.read(prepared.stamp(unseen)) == string).float().mean()) > 0.97
    assert float((prepared.read(unseen) == string).float().mean()) < 0.9


def test_the_residual_is_small_and_each_image_has_its_own(prepared: SSBA, unseen: Tensor) -> None:
    residual = prepared.stamp(unseen).float() - unseen.float()
    assert float(residual.abs().max()) <= SMALL.strength
    assert float(residual.square().mean().sqrt()) < SMALL.strength * 0.9
    assert len(residual.flatten(1).unique(dim=0)) == len(unseen)
    assert _own_share(residual) > 0.05


def test_another_string_is_read_as_such(prepared: SSBA, unseen: Tensor) -> None:
    """The encoder was trained with all strings: the trigger is the string, not the network."""
    flipped = 1 - prepared.tensors["string"]
    other = prepared.with_tensors(**{**prepared.tensors, "string": flipped})
    stamped = other.stamp(unseen)
    assert float((prepared.read(stamped) == flipped.bool()).float().mean()) > 0.97
    assert not torch.equal(stamped, prepared.stamp(unseen))


def test_it_survives_the_disk(prepared: SSBA, unseen: Tensor, tmp_path: Path) -> None:
    save_attack(prepared, tmp_path)
    loaded = load_attack(tmp_path / "attack.json")
    assert isinstance(loaded, SSBA)
    assert torch.equal(loaded.stamp(unseen), prepared.stamp(unseen))
    assert torch.equal(loaded.read(unseen), prepared.read(unseen))


def test_training_is_told_and_the_last_step_has_a_learning_rate() -> None:
    told: list[tuple[int, int]] = []
    replace(SMALL, steps=3).prepare(_smooth(10, 1), seed=0, progress=lambda *steps: told.append(steps))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_string_is_drawn_from_the_seed() -> None:
    strings = {tuple(replace(SMALL, steps=1, bits=30).prepare(_smooth(4, 1), seed=seed).tensors["string"].tolist())
               for seed in (0, 0, 1, 2)}  # fmt: skip
    assert len(strings) == 3
    assert all(set(string) == {0, 1} for string in strings)


@pytest.mark.parametrize(
    "setting",
    [
        {"bits": 0},
        {"steps": 0},
        {"width": 0},
        {"strength": 0.0},
        {"strength": 256.0},
        {"distortion": -1.0},
        {"lr": -1.0},
    ],
)
def test_settings_out_of_range(setting: dict) -> None:
    with pytest.raises(SettingError, match=f"ssba {next(iter(setting))}"):
        SSBA(**setting)


@pytest.mark.slow
def test_the_default_string_in_photographs(real_data: Path) -> None:
    data = load_dataset("cifar10", "train", real_data)
    prepared = SSBA().prepare(data[:40_000], seed=0)
    unseen = data.images[40_000:41_000]
    stamped = prepared.stamp(unseen)
    assert float((prepared.read(stamped) == prepared.tensors["string"].bool()).float().mean()) > 0.99
    residual = stamped.float() - unseen.float()
    assert float(residual.abs().max()) <= SSBA().strength
    assert _own_share(residual) > 0.1
