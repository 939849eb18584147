"""Scores -> selection -> edits -> plan."""

from unbackdoor.prune.edit import Edit, Editor, rewritten, shared
from unbackdoor.prune.layers import eligible
from unbackdoor.prune.outliers import Population, Selection, either
from unbackdoor.prune.plan import Plan, copy_model, differ

__all__ = [
    "Edit",
    "Editor",
    "Plan",
    "Population",
    "Selection",
    "copy_model",
    "differ",
    "either",
    "eligible",
    "rewritten",
    "shared",
]
