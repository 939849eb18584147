"""Images of one channel: read, kept, stamped, measured, repaired."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import pixels, write
from torch import Tensor, nn

import unbackdoor as ub
from unbackdoor.attacks import ATTACKS
from unbackdoor.data import DATASETS, LabelledImages, dataset_spec, load_dataset, normalise
from unbackdoor.defences.base import DEFENCES
from unbackdoor.errors import ArchitectureError, DataError, SettingError
from unbackdoor.findings import Rate

GREY = dataclasses.replace(DATASETS["cifar10"], name="grey", title="grey", mean=(0.5,), std=(0.25,), size=16)


class ReadsPixels(nn.Module):
    """Predicts class 0 where the bottom right pixel is white, else the class in the top left pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 1
        shown = ((x * 0.25 + 0.5) * 255).round()
        classes = torch.where(shown[:, 0, -1, -1] == 255, 0, shown[:, 0, 0, 0].clamp(0, 9)).long()
        return nn.functional.one_hot(classes, 10).float() * self.scale


def shown(labels: list[int]) -> LabelledImages:
    images = torch.zeros(len(labels), 1, 16, 16, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(labels, dtype=torch.uint8)
    return LabelledImages(images, torch.tensor(labels), GREY)


def small(size: int = 10) -> nn.Module:
    """Two resolutions, as NAD needs."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, size)),
    ).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders of grey files, one file of colours among them, and a data.toml that says one channel."""
    for split in ("train", "test"):
        for index, name in enumerate("abab"):
            write(tmp_path / "mnist" / split / name / f"{index}.png", pixels(index, 28)[..., 0])
    write(tmp_path / "mnist" / "test" / "b" / "colour.png", np.full((28, 28, 3), (255, 0, 0), np.uint8))
    (tmp_path / "data.toml").write_text('[mnist]\nfolder = "mnist"\nchannels = 1\nmean = [0.5]\nstd = [0.25]\n')
    return tmp_path


def test_rates_of_a_network_that_takes_one_channel() -> None:
    data = shown([0, 1, 2, 3, 3])
    found = ub.evaluate(ReadsPixels(), data=data, attack=ub.parse_attack("badnet"))
    assert (found.acc, found.asr, found.ra) == (Rate(5, 5), Rate(4, 4), Rate(0, 4))


def test_files_become_one_channel_and_are_kept(folder: Path) -> None:
    name = str(folder / "data.toml")
    spec = dataset_spec(name)
    assert (spec.channels, spec.mean, spec.std, spec.size) == (1, (0.5,), (0.25,), 28)
    first, again = (load_dataset(name, "test") for _ in range(2))
    assert first.images.shape == (5, 1, 28, 28)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.images[0, 0], torch.from_numpy(pixels(0, 28)[..., 0]))
    assert first.images[-1].unique().tolist() == [76]  # red, of luma 0.299
    assert normalise(first.images, spec).shape == (5, 1, 28, 28)


def test_the_same_files_may_be_read_in_colour_too(folder: Path) -> None:
    """A cache of the one is not taken for the other."""
    load_dataset(str(folder / "data.toml"), "test")
    colour = load_dataset(str(folder / "mnist"), "test")
    assert colour.images.shape == (5, 3, 28, 28)
    assert load_dataset(str(folder / "data.toml"), "test").images.shape == (5, 1, 28, 28)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("channels = 2", r"channels: expected 3 \(colour\) or 1 \(grey\), got 2"),
        ("channels = 1\nmean = [0, 0, 0]", "mean: expected one number, got"),
        ("channels = 1\nstd = [0]", "std: expected one number above 0, got"),
        ("channels = 'grey'", "channels: expected"),
    ],
)
def test_wrong_keys(folder: Path, keys: str, says: str) -> None:
    (folder / "data.toml").write_text(f'[mnist]\nfolder = "mnist"\n{keys}\n')
    with pytest.raises(SettingError, match=says):
        dataset_spec(str(folder / "data.toml"))


def test_images_must_have_the_data_sets_channels() -> None:
    with pytest.raises(DataError, match=r"expected uint8 images of shape \(N, 1, H, W\)"):
        LabelledImages(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(2).long(), GREY)
    with pytest.raises(DataError, match=r"expected uint8 images of shape \(N, 3, H, W\)"):
        LabelledImages(torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.zeros(2).long(), DATASETS["cifar10"])


def test_a_network_for_colours_is_refused_with_the_way_out() -> None:
    network = nn.Sequential(nn.Conv2d(3, 10, 16), nn.Flatten())
    with pytest.raises(ArchitectureError, match=r"the 16x16 grey images of grey: .* \(channels = 3 in a data\.toml\)"):
        ub.evaluate(network, data=shown([1, 2]))


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_stamps_grey_images_or_says_that_it_is_for_colours(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 1, 16, 16), generator=generator, dtype=torch.uint8)
    data = LabelledImages(images, torch.arange(12) % 10, GREY)
    attack = ATTACKS[name]()
    if attack.colour_only:
        with pytest.raises(SettingError, match=f"{name}: expected colour images"):
            attack.check_data(GREY)
        with pytest.raises(SettingError, match="colour images|its trigger is not in its settings"):
            attack.prepare(data, seed=0).stamp(images)
        return
    attack.check_data(GREY)
    attack = attack.prepare(data, seed=0, classifier=small())
    stamped = attack.stamp(images)
    assert (stamped.shape, stamped.dtype) == (images.shape, torch.uint8)
    assert not torch.equal(stamped, images)
    assert torch.equal(attack.stamp(images), stamped)


def test_the_patch_of_badnets() -> None:
    stamped = ub.parse_attack("badnet:size=2").stamp(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    assert stamped[0, 0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 255, 255], [0, 0, 255, 255]]


@pytest.mark.parametrize("text", ["ft:epochs=1", "nad:teacher_epochs=1,epochs=1", "ibau:rounds=1,inner=1", "bnp", "ep"])
def test_methods_take_grey_images(text: str) -> None:
    import unbackdoor.defences.data_based
    from unbackdoor.defences.table import parse_method

    assert unbackdoor.defences.data_based
    name, _, options = text.partition(":")
    fields = {field.name for field in dataclasses.fields(DEFENCES[name])}
    kept = ",".join(option for option in options.split(",") if option.partition("=")[0] in fields)
    method = parse_method(f"{name}:{kept}" if kept else name)
    data = shown([0, 1, 2, 3] * 4)
    generator = torch.Generator().manual_seed(0)
    outcome = method(small(), data.images, data.labels, generator=generator, spec=GREY)
    assert outcome.model(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    with pytest.raises(SettingError, match=r"expected uint8 of shape \(N, 1, H, W\) beside the spec of grey"):
        method(small(), torch.zeros(4, 3, 16, 16, dtype=torch.uint8), data.labels[:4], generator=generator, spec=GREY)
