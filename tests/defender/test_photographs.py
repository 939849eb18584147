"""Crops of the photographs that ship with the package."""

import re
from importlib import resources

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.defender import photographs as module
from unbackdoor.defender.on_pixels import CHUNK, OnPixels
from unbackdoor.defender.photographs import answered_with, photographs
from unbackdoor.inputs import InputSpec

PICTURES = resources.files("unbackdoor.defender").joinpath("pictures")


def spec(*shape: int) -> InputSpec:
    channels, height, width = shape
    return InputSpec(shape=(channels, height, width), mean=(0.0,) * channels, std=(1.0,) * channels)


def test_every_photograph_has_an_author_and_a_licence() -> None:
    told = PICTURES.joinpath("README.md").read_text()
    names = {file.name for file in PICTURES.iterdir() if file.name.endswith(".jpg")}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line.startswith("| `")]
    assert sorted(row[0].strip("`") for row in rows) == sorted(names)
    assert len(names) == 38
    by = r"\[CC BY (\d\.\d)\]\(https://creativecommons\.org/licenses/by/\1/\)"
    for row in rows:
        assert row[2]
        assert row[3] in ("public domain", "CC0") or re.fullmatch(by, row[3])


def test_crops_keep_the_proportions_of_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a picture whose green is its row and whose red is its column, both rise alike from pixel to pixel."""
    rows, columns = torch.meshgrid(torch.arange(240), torch.arange(250), indexing="ij")
    picture = torch.stack([columns, rows, torch.zeros_like(rows)]).to(torch.uint8)
    monkeypatch.setattr(module, "_pictures", lambda: (picture,))
    monkeypatch.setattr(module, "LIGHT", (1.0, 1.0))
    sizes = []
    for crop in photographs(20, spec(3, 24, 48), torch.Generator().manual_seed(0)):
        across = (crop[0, :, 1:-1].diff(dim=1) * 255).mean().abs()
        down = (crop[1, 1:-1].diff(dim=0) * 255).mean()
        assert float(across) == pytest.approx(float(down), rel=0.15)
        sizes.append(float(down) * 24)
    assert min(sizes) < 25  # a tenth of what the picture holds, 125 rows of it
    assert max(sizes) > 90


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_other_channels_are_mixtures_of_the_colours(channels: int) -> None:
    """Each image's channels lie within the range of its colours."""
    colours = photographs(1, spec(3, 16, 16), torch.Generator().manual_seed(3))[0]
    mixed = photographs(1, spec(channels, 16, 16), torch.Generator().manual_seed(3))[0]
    assert mixed.shape == (channels, 16, 16)
    assert bool((mixed >= colours.amin(0) - 1e-6).all())
    assert bool((mixed <= colours.amax(0) + 1e-6).all())


def test_large_images_and_small_ones() -> None:
    assert photographs(1, spec(3, 500, 300), torch.Generator().manual_seed(0)).shape == (1, 3, 500, 300)
    assert photographs(2, spec(3, 1, 1), torch.Generator().manual_seed(0)).shape == (2, 3, 1, 1)
    assert photographs(0, spec(3, 8, 8), torch.Generator().manual_seed(0)).shape == (0, 3, 8, 8)


class Brightness(nn.Module):
    """Answers 1 where an image is brighter than a limit, else 0."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3)) - self.limit
        return torch.stack([-bright, bright], 1)


def test_crops_that_are_answered_with_a_class_are_all_of_them() -> None:
    shown = OnPixels(Brightness(0.5), spec(3, 6, 6), exact=True)
    among = CHUNK + 50
    parts = [photographs(size, shown.spec, seed) for seed in [torch.Generator().manual_seed(3)] for size in (CHUNK, 50)]
    crops = torch.cat(parts)
    bright = answered_with(shown, 1, among, torch.Generator().manual_seed(3))
    assert torch.equal(bright, crops[crops.mean((1, 2, 3)) > 0.5])
    assert 0 < len(bright) < among


def test_a_class_that_no_crop_shows_has_none() -> None:
    shown = OnPixels(Brightness(1.5), spec(1, 6, 6), exact=True)
    assert answered_with(shown, 1, 30, torch.Generator().manual_seed(3)).shape == (0, 1, 6, 6)
