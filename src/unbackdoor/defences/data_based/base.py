"""What the defences that see images share: their images are checked, and what they find becomes a plan."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from unbackdoor.defences.base import Defence
from unbackdoor.defences.data_based.tuning import cross_entropy, tune
from unbackdoor.defender.case import Case, Needs
from unbackdoor.defender.images import DefenderData, data_report, images_of
from unbackdoor.findings import Remark, Stage
from unbackdoor.graph.tensors import Tensors
from unbackdoor.papers import BACKDOORBENCH, Paper
from unbackdoor.prune import Editor, Plan, Selection, rewritten
from unbackdoor.settings import setting
from unbackdoor.train import Recipe


@dataclass(frozen=True)
class Findings:
    """What a repair found, and what is to be done.

    Attributes:
        selections: what was scored, and what is to be pruned; nothing else is changed, unless `trained`.
        trained: whether the working copy's weights are the result, selections and all.
        beta: of what is pruned in a norm, "keep" or "zero".
        score: what a score is.
        stages: how training went.
        not_covered: what the method should have read and could not.
        left_alone: what it left as it is.
    """

    selections: tuple[Selection, ...] = ()
    trained: bool = False
    beta: str = "zero"
    score: str = ""
    stages: tuple[Stage, ...] = ()
    not_covered: tuple[Remark, ...] = ()
    left_alone: tuple[Remark, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataBased(Defence):
    """A defence that is given images beside the network."""

    needs: ClassVar[Needs] = "clean images"
    needs_labels: ClassVar[bool] = True

    @abstractmethod
    def repair(self, case: Case, model: nn.Module, data: DefenderData) -> Findings:
        """What is to be done with a network.

        Args:
            case: its graph, its generator, its progress bar.
            model: a float32 (or float64) copy in eval mode, all of whose weights can be trained.
            data: the images.

        Raises:
            MethodError: the method cannot work on this network, or on these images.
        """

    def plan_for(self, case: Case) -> Plan:
        """Check the images, let the method work on a copy, and put down what it comes to."""
        graph = case.layers()
        case = dataclasses.replace(case, graph=graph)
        with case.working(self.name) as model:
            data = images_of(case, model, self.name, needs=self.needs)
            found = self.repair(case, model, data)
        editor = Editor(Tensors(case.module), graph, beta=found.beta)
        selections = found.selections
        if found.trained:
            edits = rewritten(case.module, model, method=self.name)
        else:
            selections = tuple(editor.layer(selection) for selection in selections)
            edits = tuple(editor.edits)
        return Plan(
            method=self.name,
            settings=self.settings(),
            graph=graph,
            selections=selections,
            classifier=None,
            edits=edits,
            score=found.score,
            stages=found.stages,
            data=data_report(data),
            not_covered=found.not_covered,
            left_alone=(*found.left_alone, *editor.left_alone),
        )


@dataclass(frozen=True, kw_only=True)
class FineTuning(DataBased):
    """A defence that trains all weights on the clean images; BackdoorBench's settings."""

    settings_from: ClassVar[Paper] = BACKDOORBENCH
    needs_gradients: ClassVar[bool] = True

    epochs: int = setting(100, "passes over the images", least=1)
    lr: float = setting(0.01, "learning rate of SGD, falling to 0 by a cosine", least=1e-9, most=1e3)
    batch_size: int = setting(256, "images per step", least=2)
    momentum: float = setting(0.9, "momentum of SGD", least=0, most=1)
    weight_decay: float = setting(5e-4, "weight decay of SGD", least=0, most=1)
    crop_padding: int = setting(4, "zero pixels around an image before a random crop; 0 is none", least=0)

    def tuned(
        self, case: Case, model: nn.Module, data: DefenderData, forward: Callable[[Tensor], object] | None = None
    ) -> Stage:
        """Ordinary training of a network from where it is.

        Args:
            case, model, data: as in `repair`.
            forward: a function that stands for the network; None is the network itself.
        """
        recipe = Recipe(
            name=self.name,
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            crop_padding=self.crop_padding,
        )
        return tune(
            model.train().parameters(),
            cross_entropy(forward or model),
            data,
            recipe,
            name="fine-tuning",
            generator=case.rng,
            progress=case.progress,
        )
