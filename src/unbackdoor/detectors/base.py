"""What every detector is asked, and the table of detectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.data import DatasetSpec
from unbackdoor.defences.base import Needs
from unbackdoor.defender.images import DefenderData, defender_data
from unbackdoor.defender.tuning import Progress, silent
from unbackdoor.defender.working_copy import seeded, working_copy
from unbackdoor.findings import ClassFinding, Detection
from unbackdoor.graph import LayerGraph, layer_graph
from unbackdoor.outputs import answering
from unbackdoor.papers import Published
from unbackdoor.registry import Registry
from unbackdoor.settings import Configured, build, read_options

DETECTORS: Registry[type[Detector]] = Registry("detector")


@dataclass(frozen=True, kw_only=True)
class Detector(Configured, Published, ABC):
    """A way to look for a backdoor; its fields are its hyper-parameters."""

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[Needs]

    @abstractmethod
    def inspect(
        self,
        model: nn.Module,
        data: DefenderData,
        *,
        graph: Callable[[], LayerGraph],
        classes: int,
        generator: torch.Generator,
        progress: Progress,
    ) -> tuple[tuple[ClassFinding, ...], tuple[str, ...]]:
        """One finding a class, and notes.

        Args:
            model: a float32 copy in eval mode.
            data: the images.
            graph: the network's layers, for a detector that looks at them.
            classes: how many the network answers.
            generator: of everything that is drawn.
            progress: called with (done, total, a note).
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
    ) -> Detection:
        """Look at a network; it is never changed.

        Args:
            model: a network that answers (N, classes) logits, or a dict, tuple or dataclass that holds them.
            images: (N, C, H, W) uint8 beside a `spec`; else (N, ...) floating point, as the network takes them.
            labels: (N,) int64.
            generator: of everything that is drawn, on the CPU.
            spec: the data set whose normalisation the network expects.
            graph: the network's layer graph, if it has been read already.
            example: what the network takes, where its layers cannot be read without (see `layer_graph`); not looked at
                beside a `graph`.
            output: which part of what the network returns is its logits: a key, a number or a field's name.
            progress: called with (done, total, a note).

        Raises:
            SettingError: images or labels are of a wrong type, shape or range.
            MethodError: the detector cannot work on this network.
        """
        with seeded(generator, self.name), answering(work := working_copy(model, self.name), output):
            data = defender_data(images, labels, spec, work, self.name)
            with torch.no_grad():
                classes = work(data.inputs(data.images[:1])).shape[1]
            found, notes = self.inspect(
                work,
                data,
                graph=lambda: graph or layer_graph(work, example),
                classes=classes,
                generator=generator,
                progress=progress,
            )
        return Detection(
            detector=self.name,
            settings=self.settings(),
            classes=found,
            images=len(data),
            digest=data.digest,
            notes=notes,
        )


def parse_detector(text: str) -> Detector:
    """`nc` or `nc:steps=200` -> a detector; SettingError if it or a setting is unknown."""
    name, _, options = text.partition(":")
    return build(DETECTORS[name], f"detector {name}", read_options(options))
