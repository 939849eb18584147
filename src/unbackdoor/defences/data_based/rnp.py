"""RNP, reconstructive neuron pruning (Li et al., ICML 2023).

Three phases:
    unlearn  (Eq. 2) raise the loss on the clean images until the network answers a share of `clean_threshold` of them
    recover  (Eq. 3) with those weights frozen, learn a mask in [0, 1] a BatchNorm channel that lowers it again
    prune    channels of the *original* network whose mask ends at or below a threshold

Departures:
    - The published code clips gradients before it has computed them, which does nothing. By default they are clipped
      here (`clip`), and unlearning stays finite. `as_published` does not clip.
    - The published code keeps the unlearned network only if it reached the accuracy limit. Here the last epoch's
      network is used in any case, and the report shows the curve.
    - The published code checks the accuracy after each epoch of 500 images. This package does the same with larger
      sets. In epochs of 2,500 images, a network unlearns far too much before the first check.
    - The published code prints the test results of all thresholds. Here the threshold is the largest that costs at most
      `tolerance` of the accuracy on held-out clean images, or a fixed one (`holdout` 0).
    - Everything is computed in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from unbackdoor.defences.base import DEFENCES
from unbackdoor.defences.data_based.base import DataBased, Findings
from unbackdoor.defences.data_based.norm_channels import NormChannels
from unbackdoor.defences.data_based.tuning import Loss, cross_entropy, tune
from unbackdoor.defender.case import Case
from unbackdoor.defender.images import DefenderData
from unbackdoor.papers import Paper
from unbackdoor.settings import setting
from unbackdoor.train import Recipe


@dataclass(frozen=True, kw_only=True)
class RNP(DataBased):
    """Unlearn, recover, and prune the channels that do not come back."""

    name: ClassVar[str] = "rnp"
    title: ClassVar[str] = "Reconstructive neuron pruning"
    paper: ClassVar[Paper] = Paper(
        authors=("Li", "Lyu", "Ma", "Koren", "Lyu", "Li", "Jiang"),
        title="Reconstructive Neuron Pruning for Backdoor Defense",
        venue="ICML",
        year=2023,
        url="https://arxiv.org/abs/2305.14876",
    )
    version: ClassVar[int] = 2  # 1 was computed in bfloat16 where the hardware is faster with it
    needs_gradients: ClassVar[bool] = True
    passes: ClassVar[str] = "at most 20 + 20 forward and backward"

    clean_threshold: float = setting(0.2, "unlearning ends at this accuracy", least=0, most=1)
    unlearn_epochs: int = setting(20, "largest number of epochs of unlearning", least=1)
    unlearn_lr: float = setting(
        0.01, "learning rate of SGD; a tenth of it after half of the epochs", least=1e-9, most=1e3
    )
    clip: float = setting(20.0, "largest norm of all gradients together while unlearning", least=1e-9)
    alpha: float = setting(0.2, "weight of the loss while recovering", least=1e-9, most=1e3)
    recover_epochs: int = setting(20, "epochs of training the masks", least=1)
    recover_lr: float = setting(0.2, "learning rate of SGD on the masks", least=1e-9, most=1e3)
    epoch_images: int = setting(500, "largest number of images in an epoch, drawn anew each time", least=2)
    batch_size: int = setting(128, "images per step", least=2)
    momentum: float = setting(0.9, "momentum of SGD", least=0, most=1)
    weight_decay: float = setting(5e-4, "weight decay of SGD", least=0, most=1)
    threshold: float = setting(
        0.2, "channels with a mask at or below it are pruned, where `holdout` is 0", least=0, most=1
    )
    holdout: float = setting(0.2, "share of the images kept aside to choose the threshold", least=0, most=0.9, own=True)
    tolerance: float = setting(
        0.05, "share of the accuracy on the held-out images that pruning may cost", least=0, most=1, own=True
    )
    crop_padding: int = setting(4, "zero pixels around an image before a random crop; 0 is none", least=0)
    beta: Literal["keep", "zero"] = setting("keep", '"keep" switches off gamma alone, as published; "zero" both')

    @classmethod
    def as_published(cls) -> RNP:
        """A fixed threshold, of the published sweep the one that its README shows first; gradients are not clipped."""
        return cls(holdout=0.0, clip=math.inf)

    @classmethod
    def backdoorbench(cls) -> RNP:
        """That benchmark's settings: batches of 256 and a fixed threshold of 0.7."""
        return cls(batch_size=256, threshold=0.7, holdout=0.0)

    def repair(self, case: Case, model: nn.Module, data: DefenderData) -> Findings:
        """Algorithm 1."""
        channels = NormChannels(model, case.layers(), self.name)
        original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        learn, held = data, None
        if self.holdout:
            learn, held = data.held_out(self.holdout, case.rng)
        model.train()
        unlearning = tune(
            model.parameters(),
            weighted(cross_entropy(model), -1.0),  # Eq. 2
            learn,
            self._recipe(self.unlearn_epochs, self.unlearn_lr, self.weight_decay, ((self.unlearn_epochs + 1) // 2,)),
            name="unlearning",
            generator=case.rng,
            progress=case.progress,
            clip=self.clip,
            most=self.epoch_images,
            precise=True,
            stop=lambda accuracy: accuracy <= self.clean_threshold,
        )
        model.requires_grad_(False)
        masks = channels.ones().requires_grad_()

        def keep_range() -> None:
            with torch.no_grad():
                masks.clamp_(0, 1)

        recovering = tune(
            [masks],
            weighted(cross_entropy(lambda x: channels(x, masks)), self.alpha),  # Eq. 3
            learn,
            self._recipe(self.recover_epochs, self.recover_lr, 0.0, ()),
            name="recovering",
            generator=case.rng,
            progress=case.progress,
            most=self.epoch_images,
            precise=True,
            behind=keep_range,
        )
        model.load_state_dict(original)
        selections, chosen = channels.select(
            masks.detach(), self.threshold, held, tolerance=self.tolerance, beta=self.beta
        )
        score = f"masks trained on the unlearned network; 1 is a channel that recovers ({chosen})"
        return Findings(
            selections=selections,
            beta=self.beta,
            score=score,
            stages=(unlearning, recovering),
            not_covered=channels.not_covered,
            left_alone=channels.left_alone,
        )

    def _recipe(self, epochs: int, lr: float, weight_decay: float, milestones: tuple[int, ...]) -> Recipe:
        return Recipe(
            name=self.name,
            epochs=epochs,
            lr=lr,
            schedule="multistep",
            milestones=milestones,
            batch_size=self.batch_size,
            momentum=self.momentum,
            weight_decay=weight_decay,
            crop_padding=self.crop_padding,
        )


def weighted(loss: Loss, weight: float) -> Loss:
    """`weight` times a loss."""

    def value(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        inner, logits = loss(x, y)
        return weight * inner, logits

    return value


DEFENCES.add(RNP.name, RNP)
