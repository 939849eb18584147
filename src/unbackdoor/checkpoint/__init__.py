"""Read model files without running code in them, and write them completely or not at all."""

from unbackdoor.checkpoint.checkpoint import ARCH_KEY, Checkpoint, Contents
from unbackdoor.checkpoint.files import check_output, holds, kept, load, lost, read, save
from unbackdoor.checkpoint.fit import fit, folded
from unbackdoor.checkpoint.format import FORMATS, Format
from unbackdoor.checkpoint.formats.backdoorbench import MODEL_NAME, network_named
from unbackdoor.checkpoint.places import choose

__all__ = [
    "ARCH_KEY",
    "FORMATS",
    "MODEL_NAME",
    "Checkpoint",
    "Contents",
    "Format",
    "check_output",
    "choose",
    "fit",
    "folded",
    "holds",
    "kept",
    "load",
    "lost",
    "network_named",
    "read",
    "save",
]
