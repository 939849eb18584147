"""FT, fine-tuning of all weights on clean images: the baseline that every paper has, without a paper of its own.

Settings are BackdoorBench's: 100 epochs, SGD from 0.01 by a cosine to 0, batches of 256; the last epoch is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from unbackdoor.defences.base import DEFENCES
from unbackdoor.defences.data_based.base import Findings, FineTuning
from unbackdoor.defender.case import Case
from unbackdoor.defender.images import DefenderData


@dataclass(frozen=True, kw_only=True)
class FT(FineTuning):
    """Train all weights on the clean images."""

    name: ClassVar[str] = "ft"
    title: ClassVar[str] = "Fine-tuning"
    paper: ClassVar[None] = None
    passes: ClassVar[str] = "100 forward and backward"

    def repair(self, case: Case, model: nn.Module, data: DefenderData) -> Findings:
        """Ordinary training, from where the network is."""
        return Findings(trained=True, stages=(self.tuned(case, model, data),))


DEFENCES.add(FT.name, FT)
