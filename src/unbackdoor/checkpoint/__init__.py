"""Model files: read without running anything in them, written whole or not at all."""

from unbackdoor.checkpoint.checkpoint import Checkpoint
from unbackdoor.checkpoint.files import check_output, load, save

__all__ = ["Checkpoint", "check_output", "load", "save"]
