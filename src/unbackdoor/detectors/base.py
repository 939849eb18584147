"""What every detector answers, and the table of detectors."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.data import DatasetSpec
from unbackdoor.defences.base import Needs
from unbackdoor.defender.images import DefenderData, defender_data
from unbackdoor.defender.tuning import Progress, silent
from unbackdoor.defender.working_copy import seeded, working_copy
from unbackdoor.graph import LayerGraph, layer_graph
from unbackdoor.outputs import answering
from unbackdoor.papers import Published
from unbackdoor.registry import Registry
from unbackdoor.settings import Configured, build, read_options

DETECTORS: Registry[type[Detector]] = Registry("detector")

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ClassFinding:
    """What a detector found of one class.

    Attributes:
        label: the class.
        suspicious: whether it looks like an attacker's target.
        values: the detector's measures by name; None where one is not a finite number.
        images: indices, among the images given, of those that look poisoned.
    """

    label: int
    suspicious: bool
    values: Mapping[str, float | None]
    images: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What a detector found.

    Attributes:
        detector: its name, and `settings` all its hyper-parameters.
        classes: one finding a class.
        images: how many images it was given, and `digest` their SHA-256.
        notes: what a reader should know.
    """

    detector: str
    settings: Mapping[str, Any]
    classes: tuple[ClassFinding, ...]
    images: int
    digest: str
    notes: tuple[str, ...] = ()
    source: str | None = None
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def suspicious(self) -> tuple[int, ...]:
        """The classes that look like an attacker's target."""
        return tuple(finding.label for finding in self.classes if finding.suspicious)

    def to_json(self) -> str:
        """Everything, as JSON; equal detections give equal bytes."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    def to_text(self) -> str:
        """For a terminal."""
        names = list(self.classes[0].values) if self.classes else []
        rows = [("class", *names, "")]
        for found in self.classes:
            numbers = ("-" if found.values[name] is None else f"{found.values[name]:.4g}" for name in names)
            rows.append((str(found.label), *numbers, "suspicious" if found.suspicious else ""))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        if self.suspicious:
            said = f"Suspicious: class {', '.join(map(str, self.suspicious))}. A reason to look, not a proof."
        else:
            said = "No class is suspicious; that is not proof of absence."
        settings = " ".join(f"{key}={value}" for key, value in self.settings.items())
        head = [f"unbackdoor detect: {self.source or 'a model in memory'}", f"  {self.detector}  {settings}"]
        head.append(f"  {self.images:,} images, SHA-256 {self.digest}")
        return "\n".join([*head, "", said, "", *table, *("", *self.notes)]).rstrip() + "\n"


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
