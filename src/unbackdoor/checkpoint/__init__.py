"""Model files: read without running anything in them, written whole or not at all."""

from unbackdoor.checkpoint.attack_result import MODEL_NAME, NUM_CLASSES
from unbackdoor.checkpoint.checkpoint import ARCH_KEY, Checkpoint, Contents
from unbackdoor.checkpoint.files import check_output, holds, kept, load, lost, read, save
from unbackdoor.checkpoint.fit import fit, folded
from unbackdoor.checkpoint.places import choose

__all__ = [
    "ARCH_KEY",
    "MODEL_NAME",
    "NUM_CLASSES",
    "Checkpoint",
    "Contents",
    "check_output",
    "choose",
    "fit",
    "folded",
    "holds",
    "kept",
    "load",
    "lost",
    "read",
    "save",
]
