"""Training: recipes, augmentation, one loop, one run."""

from unbackdoor.train.fit import Epoch, Step, fit
from unbackdoor.train.recipe import RECIPES, Recipe
from unbackdoor.train.run import Run, measure, train_run

__all__ = ["RECIPES", "Epoch", "Recipe", "Run", "Step", "fit", "measure", "train_run"]
