"""What detectors that are given images have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import nn

from unbackdoor.defender.case import Case
from unbackdoor.defender.images import DefenderData, images_of
from unbackdoor.detectors.base import Detector, Found
from unbackdoor.findings import Detection


@dataclass(frozen=True, kw_only=True)
class DataBasedDetector(Detector):
    """A detector that is given images."""

    @abstractmethod
    def inspect(self, case: Case, model: nn.Module, data: DefenderData) -> Found:
        """Look at a network.

        Args:
            case: its layers, for a detector that looks at them; its generator, its progress bar.
            model: a float32 copy in eval mode.
            data: the images.

        Raises:
            MethodError: the detector cannot work on this network, or on these images.
        """

    def run(self, case: Case) -> Detection:
        with case.working(self.name) as model:
            data = images_of(case, model, self.name, needs=self.needs)
            found = self.inspect(case, model, data)
        return self.detection(found, images=len(data), digest=data.digest)
