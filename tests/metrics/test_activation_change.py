"""TAC and its correlation with the Lipschitz constants, against loops and NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from unbackdoor.metrics.activation_change import activation_change, coefficient, correlations, ranks
from unbackdoor.models import parse_arch


def test_tac_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([2.0, -3.0]).view(2, 1, 1, 1))
    clean = torch.zeros(1, 1, 2, 2)
    triggered = torch.tensor([[[[1.0, 0.0], [0.0, -1.0]]]])
    assert activation_change(model, clean, triggered, ["0"])["0"].tolist() == [[1.0, 1.5]]
    assert not model[0]._forward_hooks


def test_coefficients_are_numpys_and_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = torch.randn(2, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = (b * 4).round()  # ties
    assert coefficient(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert coefficient(ranks(a[None])[0], ranks(b[None])[0]) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert ranks(b[None])[0].tolist() == (stats.rankdata(b) - 1).tolist()
    assert coefficient(a, torch.ones(30, dtype=torch.float64)) is None


def test_one_coefficient_a_layer_and_image() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = parse_arch("resnet18:width=4").build()
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = correlations(model, x, x + 0.5)
    assert len(found["layers"]) == 20
    assert found["images"] == 5
    for name in ("pearson", "spearman"):
        assert [len(row) for row in found[name]["per_image"]] == [5] * 20
        values = [v for row in found[name]["per_image"] for v in row if v is not None]
        assert all(-1.000001 <= v <= 1.000001 for v in values)
    same = correlations(model, x, x)
    assert same["pearson"]["per_layer"] == [None] * 20
