"""In which layout a network is run."""

import pytest
import torch
import torch.nn as nn

from unbackdoor.defender.images import defender_data
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.working_copy import working_copy
from unbackdoor.inputs import InputSpec
from unbackdoor.models import parse_arch
from unbackdoor.precision import layout


@pytest.mark.parametrize(
    ("convolution", "safe"),
    [
        (nn.Conv2d(7, 14, 1, stride=2), False),
        (nn.Conv2d(8, 16, 1, stride=2), True),
        (nn.Conv2d(3, 16, 1, stride=(1, 3)), False),
        (nn.Conv2d(16, 16, 1, stride=2, groups=4), False),
        (nn.Conv2d(3, 16, 1), True),
        (nn.Conv2d(3, 16, 3, stride=2), True),
        (nn.Conv1d(3, 16, 1, stride=2), True),
        (nn.Linear(3, 16), True),
    ],
)
def test_only_narrow_strided_1x1_convolutions_forbid_channels_last(convolution: nn.Module, safe: bool) -> None:
    expected = torch.channels_last if safe else torch.contiguous_format
    assert layout(nn.Sequential(nn.Identity(), convolution)) == expected


@pytest.mark.parametrize(("width", "last"), [(4, False), (8, True)])
def test_working_copies_and_their_images_have_the_layout_of_their_network(width: int, last: bool) -> None:
    model = parse_arch(f"resnet18:width={width}").build().eval()
    model.to(memory_format=torch.contiguous_format if last else torch.channels_last)  # the caller's does not matter
    work = working_copy(model, "test")
    filters = [w for w in work.parameters() if w.ndim == 4]
    assert {w.stride(1) == 1 for w in filters if w.shape[2] > 1} == {last}
    pixels = torch.rand(2, 3, 32, 32)
    spec = InputSpec(shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert _is_channels_last(OnPixels(work, spec).inputs(pixels)) == last
    data = defender_data(pixels, torch.zeros(2, dtype=torch.int64), None, work, "test")
    assert _is_channels_last(data.inputs()) == last


def _is_channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)
