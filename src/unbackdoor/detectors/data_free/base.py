"""What detectors that see a network and nothing else have in common: the images that they make."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from unbackdoor.defender.case import Case, Needs
from unbackdoor.defender.input_spec import input_spec
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.detectors.base import Detector, Found
from unbackdoor.errors import MethodError
from unbackdoor.findings import Detection

#: Deviations of logarithms below this are taken for it: where classes are all but equal, nothing stands out.
LEAST = 0.15


@dataclass(frozen=True, kw_only=True)
class DataFreeDetector(Detector):
    """A detector that is given nothing but the network."""

    needs: ClassVar[Needs] = "nothing"

    @abstractmethod
    def inspect(self, case: Case, model: nn.Module) -> Found:
        """Look at a network.

        Args:
            case: its layers, for a detector that looks at them; its generator, its progress bar.
            model: a float32 copy in eval mode.

        Raises:
            MethodError: the detector cannot work on this network.
        """

    def run(self, case: Case) -> Detection:
        with case.working(self.name) as model:
            found = self.inspect(case, model)
        return self.detection(found)


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
