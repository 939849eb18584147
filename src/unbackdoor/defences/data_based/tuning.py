"""Gradient descent on a defender's few images: the loop that FT, FP, NAD and RNP share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.data.augment import Augmentation, cutout
from unbackdoor.defender.case import Progress, silent
from unbackdoor.defender.images import DefenderData, logits_of
from unbackdoor.findings import Stage, finite
from unbackdoor.precision import autocast_dtype
from unbackdoor.train import Recipe
from unbackdoor.train.fit import batch_sizes

#: (inputs, labels) -> (loss, logits).
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def cross_entropy(forward: Callable[[Tensor], object]) -> Loss:
    """The usual loss of a network (or of a function that stands for one)."""

    def loss(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of(forward(x))
        return F.cross_entropy(logits, y), logits

    return loss


def tune(
    parameters: Iterable[Tensor],
    loss: Loss,
    data: DefenderData,
    recipe: Recipe,
    *,
    name: str,
    generator: torch.Generator,
    progress: Progress = silent,
    cutout_size: int = 0,
    clip: float = math.inf,
    behind: Callable[[], None] | None = None,
    stop: Callable[[float], bool] | None = None,
    most: int | None = None,
    precise: bool = False,
) -> Stage:
    """Train some tensors in place.

    Args:
        parameters: what is trained.
        loss: of a batch; its logits are counted for the accuracy.
        recipe: epochs, learning rate, batch size and so on; `crop_padding` and the data set say how images are varied.
        name: of the stage.
        generator: of the order and the augmentation.
        progress: told after each step.
        cutout_size: side of a square that is blacked out in each image; 0 is none.
        clip: the largest norm of all gradients together.
        behind: called after each step, for example to keep a mask in its range.
        stop: told the accuracy of each epoch; True ends the training.
        most: images an epoch; None takes all.
        precise: whether everything is computed in the network's own precision, though bfloat16 would be faster.
    """
    trained = list(parameters)
    optimiser = torch.optim.SGD(
        trained, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay
    )
    how = Augmentation(padding=recipe.crop_padding)
    device = data.labels.device
    dtype = None if precise else autocast_dtype(device)
    shown = len(data) if most is None else min(most, len(data))
    per_epoch = len(batch_sizes(shown, recipe.batch_size))
    steps = recipe.epochs * per_epoch
    losses: list[float] = []
    accuracies: list[float] = []
    for epoch in range(recipe.epochs):
        loss_sum, hits = 0.0, 0
        for index, (x, y) in enumerate(data.epoch(recipe.batch_size, generator, how, most=most)):
            step = epoch * per_epoch + index
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr_at(step, steps, losses)
            x = cutout(x, size=cutout_size, fill=data.floor, generator=generator)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                value, logits = loss(x, y)
            optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            if math.isfinite(clip):
                nn.utils.clip_grad_norm_(trained, clip)
            optimiser.step()
            if behind is not None:
                behind()
            loss_sum += float(value.detach()) * len(y)
            hits += int((logits.detach().argmax(1) == y).sum())
            progress(step + 1, steps, f"{name}: loss {float(value.detach()):.3f}")
        losses.append(loss_sum / shown)
        accuracies.append(hits / shown)
        progress(
            (epoch + 1) * per_epoch,
            steps,
            f"{name}: loss {losses[-1]:.3f}, accuracy on the given images {hits / shown:.1%}",
        )
        if not math.isfinite(loss_sum) or (stop is not None and stop(accuracies[-1])):
            break
    return stage(name, "epoch", losses, accuracies)


def stage(name: str, unit: str, losses: Iterable[float], accuracies: Iterable[float]) -> Stage:
    """A stage's curves; what is not a finite number becomes None."""
    curves = (tuple(map(finite, curve)) for curve in (losses, accuracies))
    return Stage(name=name, unit=unit, losses=next(curves), accuracies=next(curves))
