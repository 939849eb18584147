"""ACC, ASR, RA and the target's recall of a network on a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import nn

from unbackdoor.data import DatasetSpec, LabelledImages, normalise
from unbackdoor.findings import Evaluation
from unbackdoor.metrics.evaluate import Stamp, evaluate_model
from unbackdoor.metrics.trial import check_answer


class Trigger(Stamp, Protocol):
    """What this file needs to know of an attack."""

    def check_data(self, spec: DatasetSpec, /) -> None: ...


def measure(
    model: nn.Module,
    test: LabelledImages,
    attack: Trigger | None,
    *,
    output: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """ACC, ASR, RA and the target's recall of a network on a data set; half-precision weights are used in float32.

    Args:
        output: which part of the network's output is the logits (see `unbackdoor.outputs`).
        progress: called with (images done, total images).

    Raises:
        ArchitectureError: the network fails on the images, or has another number of classes.
        SettingError: the attack does not fit the data set.
    """
    if attack is not None:
        attack.check_data(test.spec)
        attack.stamp(test.images[:1])
    dtype = next(model.parameters()).dtype
    try:
        check_answer(model.float(), test.spec, output=output)
        return evaluate_model(
            model,
            test.images,
            test.labels,
            prepare=lambda batch: normalise(batch, test.spec),
            attack=attack,
            num_classes=test.spec.num_classes,
            output=output,
            progress=progress,
        )
    finally:
        model.to(dtype)
