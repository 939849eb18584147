"""FT, fine-tuning of all weights on clean images: the baseline that every paper has, without a paper of its own.

Settings are BackdoorBench's: 100 epochs, SGD from 0.01 by a cosine to 0, batches of 256; the last epoch is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unbackdoor.defences.base import DEFENCES, check_count, check_number
from unbackdoor.defences.data_based.base import DataBased, Findings, Patient
from unbackdoor.defences.tuning import cross_entropy, tune
from unbackdoor.train import Recipe


@dataclass(frozen=True, kw_only=True)
class FT(DataBased):
    """Train all weights on the clean images.

    Attributes:
        epochs: passes over the images.
        lr: of SGD, falling by a cosine to 0.
        batch_size: images a step.
        momentum, weight_decay: of SGD.
        crop_padding: zero pixels around an image before a random crop; 0 is none.
    """

    name: ClassVar[str] = "ft"
    title: ClassVar[str] = "Fine-tuning"
    source: ClassVar[str] = "no paper of its own; settings of BackdoorBench, 2022"
    needs_gradients: ClassVar[bool] = True
    passes: ClassVar[str] = "100 forward and backward"

    epochs: int = 100
    lr: float = 0.01
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop_padding: int = 4

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        check_number("lr", self.lr, least=1e-9, most=1e3)
        check_count("batch_size", self.batch_size, least=2)
        check_number("momentum", self.momentum, least=0, most=1)
        check_number("weight_decay", self.weight_decay, least=0, most=1)
        check_count("crop_padding", self.crop_padding, least=0)

    def repair(self, patient: Patient) -> Findings:
        """Ordinary training, from where the network is."""
        model = patient.model.train()
        recipe = Recipe(
            name=self.name,
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            crop_padding=self.crop_padding,
        )
        stage = tune(
            model.parameters(),
            cross_entropy(model),
            patient.data,
            recipe,
            name="fine-tuning",
            generator=patient.generator,
            progress=patient.progress,
        )
        return Findings(stages=(stage,))


DEFENCES.add(FT.name, FT)
