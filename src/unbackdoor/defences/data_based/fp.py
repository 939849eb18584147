"""FP, fine-pruning (Liu et al., RAID 2018).

Symbols:
    a_f      mean activation of feature f (an input of the classifier) over clean images
    r        features go in ascending order of a_f, `step` of all at a time, while accuracy on clean images stays within
             `tolerance` of what it was; then all weights are fine-tuned without them

The features are the classifier's inputs, which in a network with global pooling are the last convolution's channels.

Departures:
    - Accuracy is measured on the clean images, never on test images. All of them serve, because nothing was fitted to
      them before.
    - Fine-tuning starts from the last network that lost at most the tolerance, not from the first that lost more.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unbackdoor.defences.base import DEFENCES
from unbackdoor.defences.data_based.base import Findings, FineTuning
from unbackdoor.defender.case import Case
from unbackdoor.defender.images import DefenderData, inputs_of
from unbackdoor.errors import MethodError
from unbackdoor.papers import Paper
from unbackdoor.prune import Population
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class FP(FineTuning):
    """Prune the features that sleep on clean images, then fine-tune."""

    name: ClassVar[str] = "fp"
    title: ClassVar[str] = "Fine-pruning"
    paper: ClassVar[Paper] = Paper(
        authors=("Liu", "Dolan-Gavitt", "Garg"),
        title="Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks",
        venue="RAID",
        year=2018,
        url="https://arxiv.org/abs/1805.12185",
    )
    passes: ClassVar[str] = "1 forward, then 100 forward and backward"

    tolerance: float = setting(0.1, "share of the accuracy that pruning may cost", least=0, most=1)
    step: float = setting(0.01, "share of all features that is pruned at a time", least=1e-6, most=1)

    def repair(self, case: Case, model: nn.Module, data: DefenderData) -> Findings:
        """Prune (Sec. 3.1), then fine-tune with the mask kept (Sec. 3.3)."""
        graph = case.layers()
        path = graph.classifier
        head = dict(model.named_modules()).get(path or "")
        if not path or not isinstance(head, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            raise MethodError("fp prunes inputs of the classifier, and this network has no single classifier layer")
        if getattr(head, "groups", 1) != 1 or "weight" not in head._parameters:
            raise MethodError(
                f"fp: {path}: its columns cannot be pruned one by one (it has groups, or its weight is computed)"
            )
        features, labels = inputs_of(model, path, data, self.name), data.labels
        if features.ndim < 2 or (isinstance(head, nn.Linear) and features.ndim != 2):
            raise MethodError(f"fp: {path}: expected one feature vector an image, got {tuple(features.shape)}")
        activation = features.flatten(2).mean((0, 2)) if features.ndim > 2 else features.mean(0)
        kept = dormant_first(head, features, labels, activation, step=self.step, tolerance=self.tolerance)
        weight = f"{path}.weight"
        mask = kept.to(features.dtype).view(1, -1, *(1,) * (head.weight.ndim - 2))

        def masked(x: Tensor) -> Any:
            return functional_call(model, {weight: head.weight * mask}, (x,))

        stage = self.tuned(case, model, data, masked)
        with torch.no_grad():
            head.weight.mul_(mask)
        features_of = dataclasses.replace(graph[path], out_channels=len(activation), blocks=1, norm=None, rule="")
        found = Population([features_of], [activation.double().cpu()], correction=1)
        return Findings(
            selections=tuple(found.selections(low=(~kept).cpu().numpy(), by_deviation=False)),
            trained=True,
            stages=(stage,),
            score="the mean activation of a classifier's input feature on clean images",
        )


@torch.no_grad()
def dormant_first(
    head: nn.Module, features: Tensor, labels: Tensor, activation: Tensor, *, step: float, tolerance: float
) -> Tensor:
    """(F,) bool: the features that stay.

    Args:
        head: the classifier.
        features: (N, F, ...) its inputs.
        labels: (N,).
        activation: (F,) their means.
        step: share of the features that goes at a time, rounded up.
        tolerance: share of the accuracy that may be lost.
    """

    def accuracy(kept: Tensor) -> float:
        logits = head(features * kept.to(features.dtype).view(1, -1, *(1,) * (features.ndim - 2)))
        return float((logits.flatten(2).mean(2) if logits.ndim > 2 else logits).argmax(1).eq(labels).double().mean())

    order = activation.argsort(stable=True)
    kept = torch.ones_like(activation, dtype=torch.bool)
    least = (1 - tolerance) * accuracy(kept)
    if least == 0 and tolerance < 1:
        raise MethodError(
            f"fp: the network classifies none of {len(labels)} images correctly; check the images and their labels"
        )
    size = math.ceil(step * len(order))
    for part in torch.split(order[:-1], size):  # one feature at least stays
        trial = kept.clone()
        trial[part] = False
        if accuracy(trial) < least:
            break
        kept = trial
    return kept


DEFENCES.add(FP.name, FP)
