"""Model files: read without running anything in them, written whole or not at all."""

from unbackdoor.checkpoint.atomic import atomic_write
from unbackdoor.checkpoint.checkpoint import Checkpoint
from unbackdoor.checkpoint.files import check_output, load, save

__all__ = ["Checkpoint", "atomic_write", "check_output", "load", "save"]
