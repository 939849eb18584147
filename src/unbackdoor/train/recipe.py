"""Training recipes as frozen values, each number with its source.

fast                                       a recipe by name
fast:optimiser=adam,lr=0.001,flip=false    with some of its settings changed
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from unbackdoor.errors import SettingError
from unbackdoor.registry import Registry
from unbackdoor.settings import Configured, Setting, build, described, read_options, setting


@dataclass(frozen=True, kw_only=True)
class Recipe(Configured):
    """How a network is trained.

    Attributes:
        name: what a user types.
    """

    name: str
    epochs: int = field(metadata=described(Setting(meaning="passes over the training set", least=1)))
    lr: float = field(metadata=described(Setting(meaning="the largest learning rate", above=0, below=math.inf)))
    schedule: Literal["cosine", "onecycle", "multistep", "plateau"] = setting(
        "cosine",
        '"cosine" falls from lr to 0 over all steps; "onecycle" rises linearly over the first fifth of the steps, '
        'then falls linearly to 0; "multistep" falls tenfold at each of `milestones`; "plateau" falls tenfold when '
        "the training loss has not fallen for `patience` epochs",
    )
    milestones: tuple[int, ...] = setting((), 'epochs, for "multistep"')
    patience: int = setting(10, 'epochs, for "plateau"', least=0)
    batch_size: int = setting(128, "images a step; a last, smaller batch is kept, unless it is a single image", least=2)
    momentum: float = setting(0.9, "of SGD", least=0, most=1)
    nesterov: bool = setting(False, "of SGD")
    weight_decay: float = setting(5e-4, "added to the gradient", least=0, most=1)
    crop_padding: int = setting(
        4, "zero pixels around an image before a random crop of its own size; 0 is no crop", least=0
    )
    optimiser: Literal["sgd", "adam"] = setting(
        "sgd", '"sgd", or "adam" with betas (0.9, 0.999) and no momentum of SGD', added=True
    )
    flip: bool = setting(True, "whether images are mirrored, where the data set allows it", added=True)

    def lr_at(self, step: int, steps: int, losses: Sequence[float] = ()) -> float:
        """The learning rate of step `step` (from 0) of `steps`.

        Args:
            losses: of the epochs that are over, for "plateau".
        """
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        if self.schedule == "multistep":
            epoch = step * self.epochs // steps
            return self.lr * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)
        if self.schedule == "plateau":
            return self.lr * 0.1 ** plateaus(losses, self.patience)
        peak = max(1, steps // 5)
        if step < peak:
            return self.lr * (step + 1) / peak
        return self.lr * (steps - step) / (steps - peak + 1)


def plateaus(losses: Sequence[float], patience: int) -> int:
    """How often the loss has not fallen below its lowest (by 0.01 %) for more than `patience` epochs."""
    lowest, waited, count = math.inf, 0, 0
    for loss in losses:
        if loss < lowest * (1 - 1e-4):
            lowest, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            count, waited = count + 1, 0
    return count


def parse_recipe(text: str, epochs: int | None = None) -> Recipe:
    """`fast`, or `fast:optimiser=adam,lr=0.001` -> a recipe; its name is then the text.

    Args:
        text: what the user wrote.
        epochs: instead of the recipe's number; None takes that.

    Raises:
        SettingError: the recipe or a setting is unknown, or a value is out of range.
    """
    name, colon, options = text.partition(":")
    recipe = RECIPES[name]
    if colon:
        given = read_options(options)
        if "name" in given or "milestones" in given:
            raise SettingError(f"recipe {text!r}: name and milestones cannot be given")
        recipe = build(Recipe, f"recipe {name}", {**dataclasses.asdict(recipe), **given, "name": text})
    return recipe if epochs is None else dataclasses.replace(recipe, epochs=epochs)


RECIPES: Registry[Recipe] = Registry("recipe")
for _recipe in (
    # One-cycle for small budgets (Smith & Topin, 2018): the usual CIFAR-10 settings, fixed before any network of
    # this project was trained, and not tuned on a test set.
    Recipe(name="fast", epochs=15, lr=0.1, schedule="onecycle", nesterov=True),
    # LPP's paper, Sec. 4.1.2; weight decay and augmentation are not printed: the field's usual. Its schedules for GTSRB
    # and Tiny ImageNet look exchanged when held against BackdoorBench's; here they are as printed.
    Recipe(name="paper", epochs=100, lr=0.001),
    Recipe(name="paper-gtsrb", epochs=200, lr=0.01, schedule="plateau"),
    Recipe(name="paper-tiny", epochs=50, lr=0.01),
    # BackdoorBench's settings for CIFAR-10 and CIFAR-100, for GTSRB (its cosine is laid out for 100 epochs whatever
    # their number, so that GTSRB's 50 would end at lr 0.005; here it ends at 0), and for Tiny ImageNet.
    Recipe(name="backdoorbench", epochs=100, lr=0.01),
    # There WaNet, BPP and Input-Aware fall at epoch 100 of 100 first, so never; Input-Aware's own optimisers are its.
    Recipe(name="backdoorbench-constant", epochs=100, lr=0.01, schedule="multistep"),
    Recipe(name="backdoorbench-gtsrb", epochs=50, lr=0.01),
    Recipe(name="backdoorbench-tiny", epochs=200, lr=0.01, schedule="plateau"),
    # WaNet's, Input-Aware's and BPP's own, on CIFAR-10 and GTSRB.
    Recipe(name="wanet", epochs=1000, lr=0.01, schedule="multistep", milestones=(100, 200, 300, 400)),
    Recipe(name="inputaware", epochs=600, lr=0.01, schedule="multistep", milestones=(100, 200, 300, 400)),
    # The code of CLP's authors.
    Recipe(name="clp", epochs=150, lr=0.1),
):
    RECIPES.add(_recipe.name, _recipe)
