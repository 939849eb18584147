"""What every detector is asked, and the table of detectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Unpack

from torch import Tensor, nn

from unbackdoor.defender.case import Beside, Case, Needs
from unbackdoor.errors import SettingError
from unbackdoor.findings import ClassFinding, Detection
from unbackdoor.papers import Published
from unbackdoor.registry import Registry
from unbackdoor.settings import Configured, build, read_options

DETECTORS: Registry[type[Detector]] = Registry("detector")

#: One finding a class, and notes.
Found = tuple[tuple[ClassFinding, ...], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Detector(Configured, Published, ABC):
    """A way to look for a backdoor; its fields are its hyper-parameters.

    Most are a `DataFreeDetector` or a `DataBasedDetector`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[Needs]

    @abstractmethod
    def run(self, case: Case) -> Detection:
        """Look at the case's network; it is never changed.

        Raises:
            SettingError: the case lacks what the detector needs, or images and labels do not fit.
            MethodError: the detector cannot work on this network.
        """

    def __call__(
        self, model: nn.Module, images: Tensor | None = None, labels: Tensor | None = None, **more: Unpack[Beside]
    ) -> Detection:
        """Look at a network; it is never changed.

        Args:
            model: a network.
            images, labels: for a detector that needs them (`needs`).
            more: generator, spec, normalisation, graph, example, output and progress, as in a `Case`.
        """
        return self.run(Case(network=model, images=images, labels=labels, **more))

    def detection(self, found: Found, *, images: int = 0, digest: str | None = None) -> Detection:
        """What was found, with the detector's name and settings."""
        classes, notes = found
        return Detection(
            detector=self.name, settings=self.settings(), classes=classes, images=images, digest=digest, notes=notes
        )


def parse_detector(text: str) -> Detector:
    """`nc` or `nc:steps=200` -> a detector; SettingError if it or a setting is unknown."""
    name, _, options = text.partition(":")
    if "@" in name:
        raise SettingError(f"{text!r}: detectors have no presets; write settings after a colon, such as nc:steps=200")
    return build(DETECTORS[name], f"detector {name}", read_options(options))
