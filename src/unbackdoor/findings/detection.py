"""What a detector found, class by class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unbackdoor.findings.values import as_json, rendered

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
        return as_json(dataclasses.asdict(self))

    def to_text(self) -> str:
        """For a terminal or a log; plain characters only."""
        return rendered(self, "text")
