"""Scores -> selection -> edits -> plan."""

from unbackdoor.prune.edit import Edit, Editor
from unbackdoor.prune.plan import Plan, copy_model
from unbackdoor.prune.select import Selection, either, eligible, select

__all__ = ["Edit", "Editor", "Plan", "Selection", "copy_model", "either", "eligible", "select"]
