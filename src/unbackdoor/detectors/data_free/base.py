"""What detectors that see a network and nothing else have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from unbackdoor.defender.case import Case, Needs
from unbackdoor.detectors.base import Detector, Found
from unbackdoor.findings import Detection


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
