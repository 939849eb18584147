"""BNP against independent arithmetic."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from unbackdoor.defences.data_based.bnp import BNP, combined, divergence, moments


def test_divergence_is_that_of_two_normal_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    m1, m2 = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    v1, v2 = torch.rand(2, 50, generator=generator, dtype=torch.float64) + 0.1
    wanted = kl_divergence(Normal(m1, v1.sqrt()), Normal(m2, v2.sqrt()))
    assert torch.allclose(divergence(m1, v1, m2, v2), wanted, rtol=1e-12)


def test_divergence_by_numerical_integration() -> None:
    m1, v1, m2, v2 = 0.3, 0.5, -0.2, 2.0
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    p, q = (torch.exp(-((x - m) ** 2) / (2 * v)) / (2 * torch.pi * v) ** 0.5 for m, v in ((m1, v1), (m2, v2)))
    integral = torch.trapezoid(torch.where(p > 0, p * (p.clamp(min=1e-300) / q).log(), 0.0), x)
    values = (torch.tensor([value]) for value in (m1, v1, m2, v2))
    assert float(divergence(*values)) == pytest.approx(float(integral), rel=1e-6)


def test_equal_statistics_have_no_divergence() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert divergence(zero, one, zero, one).tolist() == [0.0, 0.0, 0.0]


def test_moments_of_several_calls_are_those_of_all_values() -> None:
    x = torch.randn(10, 4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, var = combined([moments(x[:3]), moments(x[3:4]), moments(x[4:])])
    assert torch.allclose(mean, x.mean((0, 2, 3)))
    assert torch.allclose(var, x.var((0, 2, 3)))


def two_populations() -> tuple[nn.Module, Tensor, Tensor]:
    """Twelve channels that pass the input on; the running statistics of channel 7 come from other images."""
    model = nn.Sequential(nn.Conv2d(1, 12, 1, bias=False), nn.BatchNorm2d(12), nn.Flatten(), nn.Linear(12 * 16, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].running_mean[7] = 5.0
        model[1].bias.fill_(0.5)
    x = torch.randn(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return model.eval(), x, torch.zeros(300, dtype=torch.int64)


@pytest.mark.parametrize(("beta", "left"), [("keep", 0.5), ("zero", 0.0)])
def test_the_channel_with_other_statistics_goes(beta: str, left: float) -> None:
    model, x, y = two_populations()
    outcome = BNP(beta=beta, crop_padding=0)(model, x, y, generator=torch.Generator())
    (layer,) = outcome.report.layers
    assert layer.pruned == (7,)
    norm = outcome.model[1]
    assert norm.weight.tolist() == [1.0] * 7 + [0.0] + [1.0] * 4
    assert norm.bias.tolist() == [0.5] * 7 + [left] + [0.5] * 4
    mean, var, eps = x.mean().double(), x.var().double(), norm.eps
    wanted = kl_divergence(Normal(mean, (var + eps).sqrt()), Normal(5.0, (1 + eps) ** 0.5))
    assert layer.scores[7] == pytest.approx(float(wanted), rel=1e-4)
    cut = torch.tensor(layer.scores, dtype=torch.float64)
    assert layer.upper == pytest.approx(float(cut.mean() + 3 * cut.std()))


def test_only_one_batch_is_looked_at() -> None:
    model, x, y = two_populations()
    x[1:] = 100.0  # the generator's order decides which one image is seen
    few = BNP(batch_size=2, crop_padding=0)(model, x, y, generator=torch.Generator().manual_seed(0))
    order = torch.Generator().manual_seed(0)
    torch.randint(2**62, (), generator=order)
    seen = x[torch.randperm(300, generator=order)[:2]]
    mean, var = seen.mean(), seen.var()
    wanted = divergence(mean[None], var[None], torch.zeros(1), torch.full((1,), 1 + 1e-5), 1e-5)
    assert few.report.layers[0].scores[0] == pytest.approx(float(wanted), rel=1e-4)
