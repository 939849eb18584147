"""Model files: read without running anything in them, written whole or not at all."""

from unbackdoor.checkpoint.attack_result import MODEL_NAME, NUM_CLASSES
from unbackdoor.checkpoint.checkpoint import ARCH_KEY, Checkpoint
from unbackdoor.checkpoint.files import check_output, load, save

__all__ = ["ARCH_KEY", "MODEL_NAME", "NUM_CLASSES", "Checkpoint", "check_output", "load", "save"]
