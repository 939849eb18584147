"""NAD, neural attention distillation (Li et al., ICLR 2021).

Symbols:
    F_l      feature map of place l, (C, H, W)
    A(F)     attention: sum over channels of |F|^p, (H, W), divided by its length                    (Eqs. 1 and 2)
    teacher  the network, fine-tuned on the clean images
    student  the network, trained by CE + sum of beta_l * mean (A(student) - A(teacher))^2           (Eq. 4)

Departures:
    - The maps are the last of each of the last three resolutions *before* pooling, found in any network by running it.
      In a PreActResNet-18 the first two come after the first norm of the next stage.
    - BackdoorBench takes the pooled map as one of the three, and its attention is the constant 1. From a
      PreActResNet-18 it distils the results of the last two stages. From a ResNet-18 or a VGG it distils none, which is
      plain fine-tuning. The preset `backdoorbench` applies its PreActResNet-18 behaviour to any network
      (`maps="stages"`). The order of the three weights is our reading: the order of the network.
    - BackdoorBench runs parts of the network several times per step, which moves BatchNorm's statistics further. The
      preset does not.
    - The authors' Cutout of length 3 blackens 2x2 pixels. The default is 3x3, and `as_published` is theirs.
    - The teacher is tuned with the student's learning rates.
    - The published code keeps the epoch with the best test results. Here the last one is kept.
    - Networks whose maps have a single resolution (vision transformers) are refused.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.defences.base import DEFENCES
from unbackdoor.defences.data_based.base import DataBased, Findings
from unbackdoor.defences.data_based.tuning import cross_entropy, tune
from unbackdoor.defender.case import Case
from unbackdoor.defender.images import DefenderData
from unbackdoor.errors import MethodError
from unbackdoor.findings import Remark
from unbackdoor.graph.feature_maps import Place, last_maps, recorded
from unbackdoor.papers import Paper
from unbackdoor.settings import setting
from unbackdoor.train import Recipe


@dataclass(frozen=True, kw_only=True)
class NAD(DataBased):
    """Fine-tune a teacher, and teach the network its attention."""

    name: ClassVar[str] = "nad"
    title: ClassVar[str] = "Neural attention distillation"
    paper: ClassVar[Paper] = Paper(
        authors=("Li", "Lyu", "Koren", "Lyu", "Li", "Ma"),
        title="Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks",
        venue="ICLR",
        year=2021,
        url="https://arxiv.org/abs/2101.05930",
    )
    needs_gradients: ClassVar[bool] = True
    passes: ClassVar[str] = "10 forward and backward, then 20 of 2 forward and 1 backward"

    teacher_epochs: int = setting(10, "epochs of fine-tuning the teacher", least=1)
    epochs: int = setting(20, "epochs of training the student", least=1)
    lr: float = setting(0.1, "learning rate of SGD", least=1e-9, most=1e3)
    fall: int = setting(2, "epoch, counted from 0, from which lr is a tenth", least=1)
    beta1: float = setting(
        500.0, "weights of the attention losses, from the earliest map to the last", least=0, most=1e9
    )
    beta2: float = setting(
        1000.0, "weights of the attention losses, from the earliest map to the last", least=0, most=1e9
    )
    beta3: float = setting(
        1000.0, "weights of the attention losses, from the earliest map to the last", least=0, most=1e9
    )
    power: float = setting(2.0, "exponent p in the attention", least=1, most=10)
    batch_size: int = setting(64, "images per step", least=2)
    momentum: float = setting(0.9, "momentum of SGD", least=0, most=1)
    weight_decay: float = setting(1e-4, "weight decay of SGD", least=0, most=1)
    crop_padding: int = setting(4, "zero pixels around an image before a random crop; 0 is none", least=0)
    cutout: int = setting(3, "side of a square blacked out in each image; 0 is none", least=0, own=True)
    nesterov: bool = setting(True, "whether momentum is Nesterov's", added=True)
    maps: Literal["last", "stages"] = setting(
        "last",
        'which maps are compared: the "last" of each of the last three resolutions before pooling; or, with '
        '`beta1` and `beta2`, the results of the network\'s last two "stages", as in BackdoorBench, where '
        "`beta3` is the pooled map's, which teaches nothing",
        added=True,
    )

    @classmethod
    def as_published(cls) -> NAD:
        """The authors' code: its Cutout blackens 2x2 pixels."""
        return cls(cutout=2)

    @classmethod
    def backdoorbench(cls) -> NAD:
        """ten epochs at 0.01 throughout, batches of 256, no Cutout, no Nesterov; its maps."""
        return cls(
            epochs=10,
            lr=0.01,
            fall=10,
            batch_size=256,
            weight_decay=5e-4,
            cutout=0,
            nesterov=False,
            maps="stages",
        )

    def repair(self, case: Case, model: nn.Module, data: DefenderData) -> Findings:
        """Fig. 1: a fine-tuned teacher, a distilled student."""
        student = model
        places, betas = self._places(student, data.inputs(data.images[:2]))
        if len(places) < 2:
            raise MethodError(
                f"nad compares feature maps (N, C, H, W) of several resolutions, and this network has "
                f"{len(places)}; use ft or ibau"
            )
        betas = betas[-len(places) :]
        teacher = copy.deepcopy(student).train()
        taught = tune(
            teacher.parameters(),
            cross_entropy(teacher),
            data,
            self._recipe(self.teacher_epochs),
            name="teacher",
            generator=case.rng,
            progress=case.progress,
            cutout_size=self.cutout,
        )
        teacher.eval().requires_grad_(False)
        student.train()
        with recorded(teacher, places) as wanted, recorded(student, places) as given:

            def loss(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
                with torch.no_grad():
                    teacher(x)
                value, logits = cross_entropy(student)(x, y)
                for beta, mine, theirs in zip(betas, given.tensors, wanted.tensors, strict=True):
                    value = value + beta * attention_loss(mine, theirs, self.power)
                return value, logits

            distilled = tune(
                student.parameters(),
                loss,
                data,
                self._recipe(self.epochs),
                name="student",
                generator=case.rng,
                progress=case.progress,
                cutout_size=self.cutout,
            )
        names = ", ".join(f"{place.path} ({place.size[0]}x{place.size[1]})" for place in places)
        remark = Remark(names, "feature maps", "the attention of these was distilled")
        return Findings(trained=True, stages=(taught, distilled), left_alone=(remark,))

    def _places(self, model: nn.Module, example: Tensor) -> tuple[tuple[Place, ...], tuple[float, ...]]:
        """Where the maps are, and the weights of the last of them."""
        if self.maps == "last":
            return last_maps(model, example, count=3), (self.beta1, self.beta2, self.beta3)
        # The pooled map's attention is 1 whatever the network: its loss and its gradient are 0.
        places = last_maps(model, example, count=2, stages=True)
        if len(places) < 2:  # all of it is one module, as in a VGG
            places = last_maps(model, example, count=2)
        return places, (self.beta1, self.beta2)

    def _recipe(self, epochs: int) -> Recipe:
        return Recipe(
            name=self.name,
            epochs=epochs,
            lr=self.lr,
            schedule="multistep",
            milestones=(self.fall,),
            batch_size=self.batch_size,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
            weight_decay=self.weight_decay,
            crop_padding=self.crop_padding,
        )


def attention(maps: Tensor, power: float) -> Tensor:
    """(N, C, H, W) -> (N, H, W): sum over channels of |F|^p, divided by its Euclidean length (Eq. 2)."""
    summed = maps.float().abs().pow(power).sum(1)
    shares: Tensor = summed / (summed.flatten(1).norm(dim=1) + 1e-6)[:, None, None]
    return shares


def attention_loss(student: Tensor, teacher: Tensor, power: float) -> Tensor:
    """The mean squared difference of two attentions (Eq. 3)."""
    return F.mse_loss(attention(student, power), attention(teacher, power))


DEFENCES.add(NAD.name, NAD)
