"""What every detector answers, and the table of detectors."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn

from unbackdoor.defender.case import Beside, Case, Needs
from unbackdoor.defender.images import DefenderData, images_of
from unbackdoor.registry import Registry
from unbackdoor.settings import build, read_options

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
        images: how many images it was given, and `digest` their SHA-256; 0 and None without any.
        notes: what a reader should know.
    """

    detector: str
    settings: Mapping[str, Any]
    classes: tuple[ClassFinding, ...]
    images: int
    digest: str | None
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
        head.append(f"  {self.images:,} images, SHA-256 {self.digest}" if self.images else "  no images")
        return "\n".join([*head, "", said, "", *table, *("", *self.notes)]).rstrip() + "\n"


@dataclass(frozen=True, kw_only=True)
class Detector(ABC):
    """A way to look for a backdoor; its fields are its hyper-parameters."""

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[Needs]

    @abstractmethod
    def inspect(
        self, case: Case, model: nn.Module, data: DefenderData | None
    ) -> tuple[tuple[ClassFinding, ...], tuple[str, ...]]:
        """One finding a class, and notes.

        Args:
            case: its layers, for a detector that looks at them; its generator, its progress bar.
            model: a float32 copy in eval mode.
            data: the images; None for a detector that needs none.

        Raises:
            MethodError: the detector cannot work on this network, or on these images.
        """

    def run(self, case: Case) -> Detection:
        """Look at the case's network; it is never changed.

        Raises:
            SettingError: the case lacks what the detector needs, or images and labels do not fit.
            MethodError: the detector cannot work on this network.
        """
        with case.working(self.name) as model:
            data = None if self.needs == "nothing" else images_of(case, model, self.name, needs=self.needs)
            found, notes = self.inspect(case, model, data)
        return Detection(
            detector=self.name,
            settings=dataclasses.asdict(self),
            classes=found,
            images=0 if data is None else len(data),
            digest=None if data is None else data.digest,
            notes=notes,
        )

    def __call__(
        self, model: nn.Module, images: Tensor | None = None, labels: Tensor | None = None, **more: Unpack[Beside]
    ) -> Detection:
        """Look at a network; it is never changed.

        Args:
            model: a network.
            images, labels: for a detector that needs them (`needs`).
            more: generator, spec, graph, example, output and progress, as in a `Case`.
        """
        return self.run(Case(network=model, images=images, labels=labels, **more))


def parse_detector(text: str) -> Detector:
    """`nc` or `nc:steps=200` -> a detector; SettingError if it or a setting is unknown."""
    name, _, options = text.partition(":")
    return build(DETECTORS[name], f"detector {name}", read_options(options))
