"""How a defence that sees images is called, and what it is given to work on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.data import DatasetSpec
from unbackdoor.defences.base import Defence, Needs, Outcome
from unbackdoor.defender.images import DefenderData, defender_data
from unbackdoor.defender.tuning import Progress, cross_entropy, silent, tune
from unbackdoor.defender.working_copy import seeded, working_copy
from unbackdoor.errors import MethodError
from unbackdoor.findings import DataReport, LayerReport, Remark, Report, Stage
from unbackdoor.graph import LayerGraph, layer_graph
from unbackdoor.outputs import answering
from unbackdoor.papers import BACKDOORBENCH, Paper
from unbackdoor.prune import copy_model
from unbackdoor.settings import setting
from unbackdoor.train import Recipe


@dataclass
class Patient:
    """A network under repair.

    Attributes:
        model: a float32 (or float64) copy in eval mode, all of whose weights can be trained; what it holds when
            `repair` returns is the result.
        graph: its layers.
        data: the images.
        generator: of everything that is drawn, on the CPU.
        progress: told how far it is.
    """

    model: nn.Module
    graph: LayerGraph
    data: DefenderData
    generator: torch.Generator
    progress: Progress


@dataclass(frozen=True)
class Findings:
    """What a repair found and did, for the report.

    Attributes:
        layers: what was scored and pruned.
        score: what a score is.
        stages: how training went.
        not_covered: what the method should have read and could not.
        left_alone: what it left as it is.
    """

    layers: tuple[LayerReport, ...] = ()
    score: str = ""
    stages: tuple[Stage, ...] = ()
    not_covered: tuple[Remark, ...] = ()
    left_alone: tuple[Remark, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class DataBased(Defence):
    """A defence that is given images beside the network."""

    needs: ClassVar[Needs] = "clean images"
    needs_labels: ClassVar[bool] = True

    @abstractmethod
    def repair(self, patient: Patient) -> Findings:
        """Repair `patient.model` in place.

        Raises:
            MethodError: the method cannot work on this network, or on these images.
        """

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        generator: torch.Generator,
        spec: DatasetSpec | None = None,
        graph: LayerGraph | None = None,
        example: Any = None,
        output: str | None = None,
        progress: Progress = silent,
    ) -> Outcome:
        """A repaired copy; the network itself is never changed.

        Args:
            model: a network that answers (N, classes) logits, or a dict, tuple or dataclass that holds them.
            images: (N, C, H, W) uint8 beside a `spec`; else (N, ...) floating point, as the network takes them.
            labels: (N,) int64.
            generator: of everything that is drawn, on the CPU: the same one gives the same result.
            spec: the data set whose normalisation the network expects (`data.DATASETS["cifar10"]`).
            graph: the network's layer graph, if it has been read already.
            example: what the network takes, where its layers cannot be read without (see `layer_graph`); not looked at
                beside a `graph`.
            output: which part of what the network returns is its logits: a key, a number or a field's name.
            progress: called with (done, total, a note).

        Raises:
            GraphError: the network could not be read at all.
            SettingError: images or labels are of a wrong type, shape or range.
            MethodError: the method cannot work on this network, or training diverged.
        """
        graph = graph or layer_graph(model, example)
        with seeded(generator, self.name), answering(work := working_copy(model, self.name), output):
            data = defender_data(images, labels, spec, work, self.name)
            findings = self.repair(Patient(work, graph, data, generator, progress))
        report = Report(
            action="defend",
            method=self.name,
            settings=self.settings(),
            score=findings.score,
            layers=findings.layers,
            stages=findings.stages,
            not_covered=findings.not_covered,
            left_alone=findings.left_alone,
            data=DataReport(images=len(data), digest=data.digest, name=None if spec is None else spec.name),
        )
        return Outcome(_with_weights_of(work, model, self.name), report)


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

    def tuned(self, patient: Patient, forward: Callable[[Tensor], object]) -> Stage:
        """Ordinary training of `patient.model` from where it is.

        Args:
            forward: the network, or a function that stands for it.
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
            patient.model.train().parameters(),
            cross_entropy(forward),
            patient.data,
            recipe,
            name="fine-tuning",
            generator=patient.generator,
            progress=patient.progress,
        )


def _with_weights_of(work: nn.Module, model: nn.Module, name: str) -> nn.Module:
    """A copy of `model`, dtype, modes and hooks and all, with the weights of `work`."""
    result = copy_model(model)
    new = work.state_dict()
    before = model.state_dict()
    for key, tensor in result.state_dict().items():
        with torch.no_grad():
            tensor.copy_(new[key])
        if tensor.is_floating_point() and not torch.isfinite(tensor).all() and torch.isfinite(before[key]).all():
            raise MethodError(f"{name}: diverged: {key} would hold numbers that are not finite; a smaller lr may help")
    return result
