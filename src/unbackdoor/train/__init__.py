"""Training: recipes, one loop, what resumes it, and what an attack that controls it may do in each step."""

from unbackdoor.train.control import Session
from unbackdoor.train.fit import Epoch, Step, all_finite, batch_sizes, fit
from unbackdoor.train.recipe import RECIPES, Recipe, parse_recipe

__all__ = [
    "RECIPES",
    "Epoch",
    "Recipe",
    "Session",
    "Step",
    "all_finite",
    "batch_sizes",
    "fit",
    "parse_recipe",
]
