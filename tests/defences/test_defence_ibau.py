"""I-BAU's hypergradient against a brute-force implicit solve, and against finite differences of the whole problem."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.data import DATASETS
from unbackdoor.defences.data_based.ibau import IBAU, hypergradient
from unbackdoor.models import parse_arch

STEP, PENALTY = 0.5, 0.4


class Problem:
    """A smooth network of 203 parameters on eight inputs, with an inner problem that contracts."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)).double()
        self.weights = list(self.model.parameters())
        self.x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
        self.y = torch.randint(3, (8,), generator=generator)
        self.mixed = (torch.arange(8) % 3 == 0).double()[:, None]

    def outer(self, delta: Tensor) -> Tensor:
        return F.cross_entropy(self.model(self.x + self.mixed * delta), self.y)

    def inner(self, delta: Tensor) -> Tensor:
        return -F.cross_entropy(self.model(self.x + delta), self.y) + PENALTY * delta.square().sum()

    def phi(self, delta: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(self.inner(delta), delta, create_graph=True)
        return delta - STEP * slope

    def solved(self) -> Tensor:
        delta = torch.zeros(1, 6, dtype=torch.float64)
        for _ in range(500):
            delta = self.phi(delta.requires_grad_()).detach()
        return delta


def test_against_an_implicit_solve() -> None:
    """v = (I - J^T)^-1 d outer / d delta, with the Jacobians written out entry by entry."""
    problem = Problem()
    assert sum(weight.numel() for weight in problem.weights) == 203
    delta = problem.solved().requires_grad_()
    by_delta, *direct = torch.autograd.grad(problem.outer(delta), [delta, *problem.weights])
    mapped = problem.phi(delta).flatten()
    rows = [torch.autograd.grad(entry, [delta, *problem.weights], retain_graph=True) for entry in mapped]
    jacobian = torch.stack([row[0].flatten() for row in rows])  # d phi_i / d delta_j
    v = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - jacobian.T, by_delta.flatten())
    wanted = [a + sum(v_i * row[1 + index] for v_i, row in zip(v, rows, strict=True)) for index, a in enumerate(direct)]
    found, loss = hypergradient(problem.outer, problem.phi, delta, problem.weights, steps=200)
    assert loss == float(problem.outer(delta))
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    indirect = max(float((a - b).abs().max()) for a, b in zip(wanted, direct, strict=True))
    assert indirect > 1e-4  # the implicit part is no rounding error


def test_against_finite_differences_of_the_whole_problem() -> None:
    problem = Problem()
    found, _ = hypergradient(problem.outer, problem.phi, problem.solved(), problem.weights, steps=200)
    step = 1e-5
    for weight, gradient in zip(problem.weights, found, strict=True):
        for index in (0, weight.numel() // 2):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight.view(-1)[index] += sign * step
                values.append(float(problem.outer(problem.solved())))
                with torch.no_grad():
                    weight.view(-1)[index] -= sign * step
            assert abs((values[0] - values[1]) / (2 * step) - float(gradient.view(-1)[index])) < 1e-6


def test_few_steps_are_the_first_terms_of_the_series() -> None:
    """K steps from v = 0: the sum of (J^T)^k d outer / d delta for k < K."""
    problem = Problem()
    delta = problem.solved().requires_grad_()
    by_delta, *direct = torch.autograd.grad(problem.outer(delta), [delta, *problem.weights])
    mapped = problem.phi(delta)
    v, term = by_delta, by_delta
    for _ in range(2):
        (term,) = torch.autograd.grad(mapped, delta, grad_outputs=term, retain_graph=True)
        v = v + term
    through = torch.autograd.grad(mapped, problem.weights, grad_outputs=v)
    found, _ = hypergradient(problem.outer, problem.phi, delta, problem.weights, steps=3)
    for a, b, c in zip(found, direct, through, strict=True):
        assert torch.allclose(a, b + c, atol=1e-12)


def _norms_of_deltas(batch: int, perturbed: float) -> list[int]:
    """How many images of each outer batch differ from the clean ones."""
    spec = DATASETS["cifar10"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = parse_arch("resnet18:width=2").build()
    pixels = torch.randint(0, 256, (batch, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.randint(0, 10, (batch,), generator=torch.Generator().manual_seed(0))
    method = IBAU(rounds=1, batch_size=batch, perturbed=perturbed)
    counts: list[int] = []
    original = F.cross_entropy

    seen: list[Tensor] = []
    from unbackdoor.defences.data_based import ibau

    def watched(outer, phi, delta, weights, *, steps):
        at = delta.detach().requires_grad_()
        outer(at).backward()
        seen.append(at)
        for cell in outer.__defaults__:
            if cell.shape[1:] == (1, 1, 1):
                counts.append(int(cell.sum()))
        return hypergradient(outer, phi, delta, weights, steps=steps)

    ibau.hypergradient = watched
    try:
        method(model, pixels, labels, generator=torch.Generator().manual_seed(0), spec=spec)
    finally:
        ibau.hypergradient = hypergradient
    assert F.cross_entropy is original
    return counts


def test_a_small_batch_still_perturbs_one_image() -> None:
    assert _norms_of_deltas(8, 0.01) == [1]
    assert _norms_of_deltas(8, 0.5) == [4]
    assert _norms_of_deltas(8, 0.0) == [0]


def test_the_perturbation_stays_in_its_ball_in_pixels() -> None:
    """Whatever the normalisation: the same network behind another normalisation finds the same perturbation."""
    spec = DATASETS["cifar10"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inner = parse_arch("resnet18:width=2").build().double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (spec.mean, spec.std))

    class Raw(nn.Module):
        """Takes pixels in [0, 1]."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((x - mean) / std)

    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batches = [(x, torch.zeros(6, dtype=torch.int64))]
    delta = IBAU()._inner(Raw(), batches, torch.ones((), dtype=torch.float64))
    normalised = [((x - mean) / std, batches[0][1])]
    again = IBAU()._inner(inner, normalised, 1 / std)
    assert torch.allclose(delta, again, atol=1e-9)
    assert 0 < float(delta.norm()) <= 10 + 1e-9
    assert float(IBAU(radius=0.5)._inner(inner, normalised, 1 / std).norm()) <= 0.5 + 1e-9
