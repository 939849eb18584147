"""Run a network on a test set, and count its correct and attacked predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from unbackdoor.findings import Evaluation
from unbackdoor.metrics.rates import accuracy, attack_success, recall
from unbackdoor.outputs import logits_of, part_of

Progress = Callable[[int, int], None]
NO_CLASS = -1


class Stamp(Protocol):
    """What this file needs to know of an attack."""

    def target_labels(self, labels: Tensor, num_classes: int, /) -> Tensor: ...

    def stamp(self, images: Tensor, /) -> Tensor: ...


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    *,
    prepare: Callable[[Tensor], Tensor],
    output: str | None = None,
    batch_size: int = 500,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """The classes a network predicts, in eval mode; its mode is restored.

    Args:
        images: (N, C, H, W) uint8.
        prepare: turns a batch of them into what the network expects.
        output: which part of the network's output is the logits: a key, a number or a field's name.
        progress: called with the number of images of each batch done.

    Returns:
        (N,) int64 on the CPU; NO_CLASS if a logit is NaN, which argmax would take for the class.

    Raises:
        ArchitectureError: the network does not answer with one logit a class.
    """
    modes = {module: module.training for module in model.modules()}
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    model.eval()
    try:
        parts = []
        for batch in torch.split(images, batch_size):
            inputs = prepare(batch.to(parameter.device)).to(parameter.dtype)
            answer = model(inputs.contiguous(memory_format=torch.channels_last))
            logits = logits_of(answer if output is None else part_of(answer, output))
            parts.append(logits.argmax(1).masked_fill(logits.isnan().any(1), NO_CLASS).cpu())
            if progress is not None:
                progress(len(batch))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def evaluate_model(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    prepare: Callable[[Tensor], Tensor],
    attack: Stamp | None = None,
    num_classes: int | None = None,
    output: str | None = None,
    batch_size: int = 500,
    progress: Progress | None = None,
) -> Evaluation:
    """ACC of a network, and ASR, RA and the target's recall where an attack is given.

    Args:
        images: (N, C, H, W) uint8 clean test images.
        labels: (N,) int64.
        prepare: turns a uint8 batch into what the network expects (`data.normalise`).
        attack: puts its trigger on the images whose class is not the target.
        num_classes: of the data set; the largest label + 1 if None. Only all-to-all attacks differ by it.
        output: which part of the network's output is the logits: a key, a number or a field's name.
        progress: called with (images done, total images).

    Raises:
        ArchitectureError: the network does not answer with one logit a class.
    """
    labels = labels.cpu()
    classes = num_classes or (int(labels.max()) + 1 if len(labels) else 1)
    targets = labels if attack is None else attack.target_labels(labels, classes)
    others = labels != targets
    total, done = len(labels) + int(others.sum()), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    clean = predict(model, images, prepare=prepare, output=output, batch_size=batch_size, progress=advance)
    acc = accuracy(clean, labels)
    if attack is None:
        return Evaluation(acc)
    parts = torch.split(images[others.to(images.device)], batch_size)  # a trigger may take ten times an image's memory
    stamped = torch.cat([attack.stamp(part) for part in parts])
    hit = predict(model, stamped, prepare=prepare, output=output, batch_size=batch_size, progress=advance)
    target = target_of(attack, classes)
    own = None if target is None else recall(clean, labels, target)
    return Evaluation(acc, *attack_success(hit, labels[others], targets[others]), own)


def target_of(attack: Stamp, classes: int) -> int | None:
    """The class that an attack wants for every image; None where that depends on the image's own class.

    Args:
        attack: the attack.
        classes: how many classes the data set has.
    """
    wanted = set(attack.target_labels(torch.arange(classes), classes).tolist())
    return int(wanted.pop()) if len(wanted) == 1 else None
