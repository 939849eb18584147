"""What every detector is asked, and the table of detectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from unbackdoor.defender.case import Beside, Case, Needs
from unbackdoor.defender.images import DefenderData, images_of
from unbackdoor.defender.input_spec import input_spec
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.errors import MethodError, SettingError
from unbackdoor.findings import ClassFinding, Detection
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
            settings=self.settings(),
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
    if "@" in name:
        raise SettingError(f"{text!r}: detectors have no presets; write settings after a colon, such as nc:steps=200")
    return build(DETECTORS[name], f"detector {name}", read_options(options))


def on_pixels(case: Case, model: nn.Module, *, exact: bool = False) -> tuple[OnPixels, int, str]:
    """A case's network as generated images see it, its number of classes, and a note on what images it takes.

    Args:
        case: what is known of the images.
        model: the network's working copy, whose weights take no gradients from now on.
        exact: whether it runs in its own precision.

    Raises:
        MethodError: the images' size is not known, or the network does not answer them with finite logits of two
            classes or more.
    """
    model.requires_grad_(False)
    found = input_spec(case, model)
    network = OnPixels(model, found.spec, exact=exact)
    classes = network.logits(torch.full((2, *found.spec.shape), 0.5)).shape[1]
    if classes < 2:
        raise MethodError(f"expected a network of 2 or more classes, got {classes}")
    return network, classes, found.note
