"""EP against independent arithmetic."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from unbackdoor.defences.data_based.ep import EP, entropy


def test_entropy_by_hand() -> None:
    """Channel 0 takes two values equally often, channel 1 four: after standardising ln 2 and ln 4."""
    features = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 2.0], [1.0, 3.0]]).repeat(5, 1)
    assert entropy(features, 0.1).tolist() == pytest.approx([math.log(2), math.log(4)])


def test_entropy_against_numpys_histogram() -> None:
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.arange(1, 7)
    z = ((x - x.mean(0)) / x.std(0)).numpy()
    width = 0.1
    edges = z.min() + width * np.arange(int((z.max() - z.min()) / width) + 2)
    wanted = []
    for channel in z.T:
        share = np.histogram(channel, edges)[0] / len(channel)
        wanted.append(-(share[share > 0] * np.log(share[share > 0])).sum())
    assert entropy(x, width).tolist() == pytest.approx(wanted, abs=1e-9)


def test_a_constant_channel_has_none_and_spoils_nothing() -> None:
    x = torch.randn(50, 3)
    x[:, 1] = 7.0
    found = entropy(x, 0.1)
    assert torch.isnan(found).tolist() == [False, True, False]


def test_the_channel_with_two_humps_goes() -> None:
    """One image in ten carries the trigger, which channel 3 alone answers."""
    model = nn.Sequential(nn.Conv2d(12, 12, 1, bias=False), nn.BatchNorm2d(12), nn.Flatten(), nn.Linear(12 * 4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(12)[:, :, None, None])
    x = torch.randn(500, 12, 2, 2, generator=torch.Generator().manual_seed(0))
    x[:, 3] *= 0.01
    x[:50, 3] += 1.0
    y = torch.zeros(500, dtype=torch.int64)
    outcome = EP(bin_width=0.1, crop_padding=0, beta="zero")(model.eval(), x, y, generator=torch.Generator())
    (layer,) = outcome.report.layers
    assert layer.pruned == layer.pruned_low == (3,)
    assert (outcome.model[1].weight[3].item(), outcome.model[1].bias[3].item()) == (0.0, 0.0)
    clean = EP(bin_width=0.1, crop_padding=0)(model, x[50:], y[50:], generator=torch.Generator())
    assert clean.report.layers[0].pruned == ()  # clean images alone show nothing
