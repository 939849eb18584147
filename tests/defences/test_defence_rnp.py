"""RNP's phases, against loops that know nothing of the package's masks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.defences.data_based import rnp
from unbackdoor.defences.data_based.rnp import RNP
from unbackdoor.train import fit


class Small(nn.Module):
    """conv -> norm -> ReLU -> mean -> fc."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture
def problem(monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Tensor, Tensor]:
    """Twelve images of three classes and a network that knows them; float32 throughout."""
    assert fit
    monkeypatch.setattr("unbackdoor.defences.data_based.tuning.autocast_dtype", lambda _device: None)
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(12) % 3
    x = torch.randn(12, 2, 4, 4, generator=generator)
    x[:, 0] += (y[:, None, None] - 1) * 3.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Small()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(10):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval(), x, y


def by_hand(model: nn.Module, x: Tensor, y: Tensor, method: RNP) -> tuple[Tensor, list[float], list[float]]:
    """Unlearning and recovering in full batches, with the masked norm written out; masks and both loss curves."""
    work = copy.deepcopy(model).train()
    optimiser = torch.optim.SGD(work.parameters(), lr=method.unlearn_lr, momentum=0.9, weight_decay=5e-4)
    ups = []
    for epoch in range(method.unlearn_epochs):
        if epoch == method.unlearn_epochs // 2:
            optimiser.param_groups[0]["lr"] *= 0.1
        logits = work(x)
        loss = -F.cross_entropy(logits, y)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(work.parameters(), method.clip)
        optimiser.step()
        ups.append(loss.item())
        if float((logits.argmax(1) == y).float().mean()) <= method.clean_threshold:
            break
    mask = torch.ones(6, requires_grad=True)
    velocity, downs = torch.zeros(6), []
    for _ in range(method.recover_epochs):
        z = work.conv(x)
        hat = (z - z.mean((0, 2, 3), keepdim=True)) / (z.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        gamma = (mask * work.norm.weight)[None, :, None, None]
        logits = work.fc(torch.relu(gamma * hat + work.norm.bias[None, :, None, None]).mean((2, 3)))
        loss = method.alpha * F.cross_entropy(logits, y)
        (gradient,) = torch.autograd.grad(loss, mask)
        velocity = 0.9 * velocity + gradient
        mask = (mask - method.recover_lr * velocity).detach().clamp(0, 1).requires_grad_()
        downs.append(loss.item())
    return mask.detach(), ups, downs


def test_both_phases_by_hand(problem: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = problem
    method = RNP(holdout=0.0, crop_padding=0, unlearn_epochs=12, unlearn_lr=0.5, recover_epochs=15, threshold=0.9)
    masks, ups, downs = by_hand(model, x, y, method)
    outcome = method(model, x, y, generator=torch.Generator().manual_seed(0))
    unlearning, recovering = outcome.report.stages
    assert unlearning.losses == pytest.approx(ups, rel=1e-3)
    assert recovering.losses == pytest.approx(downs, rel=1e-3)
    (layer,) = outcome.report.layers
    assert layer.scores == pytest.approx(masks.tolist(), abs=1e-3)
    assert layer.pruned == tuple((masks <= 0.9).nonzero().flatten().tolist())
    assert 0 < len(layer.pruned) < 6


def test_what_is_pruned_is_the_network_as_it_came(problem: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = problem
    outcome = RNP(holdout=0.0, threshold=0.9, crop_padding=0, unlearn_lr=0.5)(model, x, y, generator=torch.Generator())
    pruned = list(outcome.report.layers[0].pruned)
    assert pruned
    wanted = copy.deepcopy(model.state_dict())
    wanted["norm.weight"][pruned] = 0
    for key, tensor in outcome.model.state_dict().items():
        assert torch.equal(tensor, wanted[key]), key


def test_unlearning_stops_at_the_limit(problem: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = problem
    outcome = RNP(holdout=0.0, crop_padding=0, unlearn_lr=0.5, clean_threshold=0.5)(
        model, x, y, generator=torch.Generator()
    )
    unlearning = outcome.report.stages[0]
    assert unlearning.accuracies[-1] <= 0.5
    assert all(rate > 0.5 for rate in unlearning.accuracies[:-1])
    assert len(unlearning.losses) < 20


def test_the_held_out_part_is_not_learnt_on(
    problem: tuple[nn.Module, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = problem
    sizes = []
    original = rnp.tune

    def watched(parameters, loss, data, *args, **more):
        sizes.append(len(data))
        return original(parameters, loss, data, *args, **more)

    monkeypatch.setattr(rnp, "tune", watched)
    RNP(holdout=0.25, crop_padding=0)(model, x, y, generator=torch.Generator())
    assert sizes == [9, 9]
