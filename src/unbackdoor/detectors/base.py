"""What every detector is asked, and the table of detectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from unbackdoor import outputs
from unbackdoor.data import DatasetSpec
from unbackdoor.defender.case import Beside, Case, Needs
from unbackdoor.defender.images import DefenderData, images_of
from unbackdoor.errors import ArchitectureError, MethodError, SettingError
from unbackdoor.findings import ClassFinding, Detection
from unbackdoor.inputs import InputSpec
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


def surrogate_spec(case: Case, model: nn.Module) -> InputSpec:
    """The size and normalisation of images that a detector makes up.

    Args:
        case: with the spec of a data set; or else with an example (N, C, H, W), for pixels in [0, 1] as they are.
        model: the network, for which they are meant.

    Raises:
        MethodError: the case says neither, or the network does not answer such images with one logit a class.
    """
    if isinstance(case.spec, DatasetSpec):
        spec = InputSpec(
            shape=(case.spec.channels, case.spec.size, case.spec.size), mean=case.spec.mean, std=case.spec.std
        )
    else:
        example = next((x for x in tree_leaves(case.example) if isinstance(x, Tensor)), torch.empty(0))
        if example.ndim != 4 or not example.is_floating_point():
            raise MethodError(
                "expected the size of the network's images, which nothing says; name the data set it was trained on "
                "(--data, spec=...), or give the size with --input 3x32x32 (example=...) if it takes pixels in [0, 1]"
            )
        channels, height, width = example.shape[1:]
        spec = InputSpec(shape=(channels, height, width), mean=(0.0,) * channels, std=(1.0,) * channels)
    answers_to(model, torch.full((2, *spec.shape), 0.5), spec)
    return spec


def answers_to(model: nn.Module, pixels: Tensor, spec: InputSpec) -> Tensor:
    """The logits for pixels in [0, 1] on any device, (N, classes).

    Raises:
        MethodError: the network fails on such images, or does not answer one finite logit a class.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        logits = outputs.logits_of(model(spec.normalise(pixels.to(like.device, like.dtype))))
    except ArchitectureError as error:
        raise MethodError(str(error)) from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MethodError(f"the network fails on images of shape {spec.shape}: {reason}") from error
    if len(logits) != len(pixels):
        raise MethodError(f"expected (N, classes) logits, got {tuple(logits.shape)} for {len(pixels)} images")
    if not bool(torch.isfinite(logits).all()):
        raise MethodError("expected finite logits, got NaN or infinity")
    return logits
