"""Training: recipes, augmentation, one loop, one run."""

from unbackdoor.train.fit import Epoch, Step, fit
from unbackdoor.train.recipe import RECIPES, Recipe
from unbackdoor.train.run import Run, check_device, check_run, measure, train_run
from unbackdoor.train.trial import check_answer

__all__ = [
    "RECIPES",
    "Epoch",
    "Recipe",
    "Run",
    "Step",
    "check_answer",
    "check_device",
    "check_run",
    "fit",
    "measure",
    "train_run",
]
