"""Fine-tuning against a plain loop, and fine-pruning by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.defences.data_based.fp import FP, dormant_first
from unbackdoor.defences.data_based.ft import FT
from unbackdoor.errors import MethodError


class Small(nn.Module):
    """conv -> norm -> ReLU -> mean -> fc."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = head or nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbackdoor.defences.data_based.tuning.autocast_dtype", lambda _device: None)


def data(count: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, 4, 4, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def small(head: nn.Module | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small(head).eval()


def test_fine_tuning_is_a_plain_loop() -> None:
    model, (x, y) = small(), data()
    work = copy.deepcopy(model).train()
    optimiser = torch.optim.SGD(work.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    steps, losses = 5, []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        loss = F.cross_entropy(work(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    outcome = FT(epochs=5, lr=0.05, crop_padding=0)(model, x, y, generator=torch.Generator())
    for key, tensor in work.state_dict().items():
        assert torch.allclose(outcome.model.state_dict()[key].float(), tensor.float(), atol=1e-5), key
    assert outcome.report.stages[0].losses == pytest.approx(losses, rel=1e-4)


def test_the_most_dormant_go_first_while_the_accuracy_lasts() -> None:
    """Feature 2 alone decides; it is the third in order of activation."""
    head = nn.Linear(5, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0, 0, -1.0, 0, 0], [0, 0, 1.0, 0, 0]]))
    features = torch.zeros(10, 5)
    features[:, 2] = torch.tensor([1.0, -1.0]).repeat(5)
    labels = (features[:, 2] > 0).long()
    activation = torch.tensor([0.1, 0.9, 0.3, 0.2, 0.8])
    kept = dormant_first(head, features, labels, activation, step=0.2, tolerance=0.1)
    assert kept.tolist() == [False, True, True, False, True]
    assert dormant_first(head, features, labels, activation, step=0.6, tolerance=0.1).all()
    everything = dormant_first(head, features, labels, activation, step=0.2, tolerance=1.0)
    assert everything.sum() == 1  # never the last one


def test_what_is_pruned_stays_pruned_through_fine_tuning() -> None:
    model, (x, y) = small(), data()
    with torch.no_grad():
        model.norm.weight[2] = 0.0
        model.norm.bias[2] = -1.0  # sleeps for good
    outcome = FP(epochs=3, crop_padding=0, tolerance=0.0, step=0.125)(model, x, y, generator=torch.Generator())
    (layer,) = outcome.report.layers
    assert layer.path == "fc"
    assert 2 in layer.pruned
    for feature in range(8):
        assert bool(outcome.model.fc.weight[:, feature].any()) is (feature not in layer.pruned)
    assert not torch.equal(outcome.model.conv.weight, model.conv.weight)
    reached = torch.relu(model.norm(model.conv(x))).mean((0, 2, 3))
    assert layer.scores == pytest.approx(reached.tolist(), rel=1e-4)


def test_without_a_single_classifier_there_is_nothing_to_prune() -> None:
    class TwoHeads(Small):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            features = torch.relu(self.norm(self.conv(x))).mean((2, 3))
            return self.fc(features) + self.other(features)

    with pytest.raises(MethodError, match="fp prunes inputs of the classifier"):
        FP()(TwoHeads().eval(), *data(), generator=torch.Generator())


def test_a_classifier_that_is_a_convolution() -> None:
    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 8, 3, padding=1)
            self.head = nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.conv(x)).mean((2, 3), keepdim=True)).flatten(1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Convolutional().eval()
    outcome = FP(epochs=1, crop_padding=0, tolerance=1.0, step=0.125)(model, *data(), generator=torch.Generator())
    assert outcome.report.layers[0].path == "head"
    assert len(outcome.report.layers[0].pruned) == 7
