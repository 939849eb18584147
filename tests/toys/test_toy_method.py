"""A method in one file, without an edit elsewhere: it has no data, makes inputs of its own, and trains on them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unbackdoor as ub
from cli_runs import PACKAGED, run
from unbackdoor import checkpoint
from unbackdoor.defences.base import DEFENCES, Defence
from unbackdoor.defender.case import Case
from unbackdoor.errors import SettingError
from unbackdoor.findings import Stage
from unbackdoor.prune import Plan, rewritten
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class Unlearn(Defence):
    """Invert the network into one picture a class, find one step that turns all of them, and train it away."""

    name: ClassVar[str] = "unlearn"
    title: ClassVar[str] = "Unlearning on inverted pictures"
    paper: ClassVar[None] = None
    needs_gradients: ClassVar[bool] = True

    size: int = setting(32, "of a made picture's sides, in pixels", least=1)
    steps: int = setting(3, "of gradient ascent, and of training", least=1)
    lr: float = setting(0.01, "of both", least=0)

    def plan_for(self, case: Case) -> Plan:
        """Pictures, a step away from them, and weights that no longer mind it."""
        graph = case.layers()
        with case.working(self.name) as model:
            x, y = self.pictures(model, case.rng)
            optimiser = torch.optim.SGD(model.parameters(), lr=self.lr)
            losses = []
            for step in range(self.steps):
                (slope,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
                loss = F.cross_entropy(model((x + 0.1 * slope.sign()).detach()), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(float(loss.detach()))
                case.progress(step + 1, self.steps, "unlearning")
        return Plan(
            method=self.name,
            settings=self.settings(),
            graph=graph,
            selections=(),
            classifier=None,
            edits=rewritten(case.module, model, method=self.name),
            stages=(Stage(name="unlearning", unit="step", losses=tuple(losses), accuracies=()),),
        )

    def pictures(self, model: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One input a class, by gradient ascent from noise."""
        x = torch.randn(1, 3, self.size, self.size, generator=generator)
        classes = model(x).shape[1]
        x = x.expand(classes, -1, -1, -1).clone().requires_grad_()
        y = torch.arange(classes)
        for _ in range(self.steps):
            (slope,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
            x = (x - self.lr * slope).detach().requires_grad_()
        return x, y


TEXT = "unlearn:size=8,steps=1"


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    DEFENCES.add(Unlearn.name, Unlearn)
    yield
    del DEFENCES._entries[Unlearn.name]


def test_in_python() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, two = (Unlearn(size=8)(model, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    plan = Unlearn(size=8).plan(model, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    changed = [name for name, tensor in one.model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert sorted(changed) == sorted({edit.name for edit in plan.edits})
    assert all(torch.equal(two.model.state_dict()[name], one.model.state_dict()[name]) for name in before)
    assert one.report.stages[0].losses[-1] < one.report.stages[0].losses[0]
    plan.apply_(model)
    plan.undo(model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    with pytest.raises(SettingError, match="generator: expected a torch.Generator"):
        Unlearn(size=8)(model)


def test_on_files(tmp_path: Path) -> None:
    done = ub.defend(PACKAGED, tmp_path / "a.safetensors", method=ub.parse_method(TEXT), seed=3)
    assert done.report.method == "unlearn"
    assert done.report.settings == {"size": 8, "steps": 1, "lr": 0.01}
    done = run("defend", PACKAGED, "--method", TEXT, "--seed", "3", "-o", tmp_path / "b.safetensors")
    assert (done.code, "unlearning (1 step): loss" in done.out) == (0, True)
    a, b, old = (
        checkpoint.load(path).tensors for path in (tmp_path / "a.safetensors", tmp_path / "b.safetensors", PACKAGED)
    )
    assert all(torch.equal(a[name], b[name]) for name in old)
    assert any(not torch.equal(a[name], old[name]) for name in old)
    assert {name: t.dtype for name, t in a.items()} == {name: t.dtype for name, t in old.items()}
    report = ub.repair(PACKAGED, tmp_path / "c.safetensors", method=ub.parse_method(TEXT))
    assert report.output == str(tmp_path / "c.safetensors")
