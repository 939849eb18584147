"""RNP, reconstructive neuron pruning (Li, Lyu, Ma, Koren, Lyu, Li & Jiang, "Reconstructive Neuron Pruning for Backdoor
Defense", ICML 2023).

Three phases:
    unlearn  (Eq. 2) raise the loss on the clean images until the network answers a share of `clean_threshold` of them
    recover  (Eq. 3) with those weights frozen, learn a mask in [0, 1] a BatchNorm channel that lowers it again
    prune    channels of the network *as it came* whose mask ends at or below a threshold

Departures: the published code clips gradients before it has computed them, which does nothing; here they are clipped
(`clip`) by default, and unlearning stays finite; `as_published` does not clip. It keeps the unlearned network only
where the accuracy limit was reached; here the last epoch's is used, whatever it reached, and the report shows the
curve. Its epochs are of 500 images, after each of which the accuracy is looked at; so they are here where there are
more, for in epochs of 2,500 a network has unlearned far too much before anybody looks. It prints the test results of
all thresholds; here the largest one is taken that costs at most `tolerance` of the accuracy on held-out clean images,
or a fixed one (`holdout` 0). Everything is computed in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from unbackdoor.defences.base import DEFENCES, check_choice, check_count, check_number
from unbackdoor.defences.data_based.base import DataBased, Findings
from unbackdoor.defender.case import Case
from unbackdoor.defender.images import DefenderData
from unbackdoor.defender.norm_channels import NormChannels
from unbackdoor.defender.tuning import Loss, cross_entropy, tune
from unbackdoor.train import Recipe


@dataclass(frozen=True, kw_only=True)
class RNP(DataBased):
    """Unlearn, recover, and prune the channels that do not come back.

    Attributes:
        clean_threshold: unlearning ends at this accuracy.
        unlearn_epochs: at most.
        unlearn_lr: of SGD; a tenth of it after half of the epochs.
        clip: the largest norm of all gradients together, while unlearning.
        alpha: weight of the loss while recovering.
        recover_epochs: of the masks.
        recover_lr: of SGD on the masks.
        epoch_images: an epoch is so many images at most, drawn anew each time.
        batch_size: images a step.
        momentum, weight_decay: of SGD.
        threshold: channels with a mask at or below it are pruned, where `holdout` is 0.
        holdout: share of the images kept aside to choose the threshold.
        tolerance: the share of the accuracy on those that pruning may cost.
        crop_padding: zero pixels around an image before a random crop; 0 is none.
        beta: "keep" switches off gamma alone, as published; "zero" both.
    """

    name: ClassVar[str] = "rnp"
    title: ClassVar[str] = "Reconstructive neuron pruning"
    source: ClassVar[str] = "Li et al., ICML 2023"
    own: ClassVar[frozenset[str]] = frozenset(("holdout", "tolerance"))
    version: ClassVar[int] = 2  # 1 was computed in bfloat16 where the hardware is faster with it
    needs_gradients: ClassVar[bool] = True
    passes: ClassVar[str] = "at most 20 + 20 forward and backward"

    clean_threshold: float = 0.2
    unlearn_epochs: int = 20
    unlearn_lr: float = 0.01
    clip: float = 20.0
    alpha: float = 0.2
    recover_epochs: int = 20
    recover_lr: float = 0.2
    epoch_images: int = 500
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    threshold: float = 0.2
    holdout: float = 0.2
    tolerance: float = 0.05
    crop_padding: int = 4
    beta: Literal["keep", "zero"] = "keep"

    def __post_init__(self) -> None:
        check_number("clean_threshold", self.clean_threshold, least=0, most=1)
        check_count("unlearn_epochs", self.unlearn_epochs)
        check_number("unlearn_lr", self.unlearn_lr, least=1e-9, most=1e3)
        check_number("clip", self.clip, least=1e-9)
        check_number("alpha", self.alpha, least=1e-9, most=1e3)
        check_count("recover_epochs", self.recover_epochs)
        check_number("recover_lr", self.recover_lr, least=1e-9, most=1e3)
        check_count("epoch_images", self.epoch_images, least=2)
        check_count("batch_size", self.batch_size, least=2)
        check_number("momentum", self.momentum, least=0, most=1)
        check_number("weight_decay", self.weight_decay, least=0, most=1)
        check_number("threshold", self.threshold, least=0, most=1)
        check_number("holdout", self.holdout, least=0, most=0.9)
        check_number("tolerance", self.tolerance, least=0, most=1)
        check_count("crop_padding", self.crop_padding, least=0)
        check_choice("beta", self.beta, ("keep", "zero"))

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
        came = {name: tensor.clone() for name, tensor in model.state_dict().items()}
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
        model.load_state_dict(came)
        selections, said = channels.select(
            masks.detach(), self.threshold, held, tolerance=self.tolerance, beta=self.beta
        )
        score = f"masks that were learnt on the unlearned network (1 is a channel that comes back; {said})"
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
