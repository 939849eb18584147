"""What is done with model files: `scan`, `repair`, `defend`, `detect`, `diff`, `evaluate`, `load_model`."""

from unbackdoor.checkpoint import ARCH_KEY
from unbackdoor.model_files.defending import Defended, defend
from unbackdoor.model_files.detecting import detect
from unbackdoor.model_files.differences import Difference, diff
from unbackdoor.model_files.evaluating import evaluate
from unbackdoor.model_files.reading import ModelFile, load_model, open_model
from unbackdoor.model_files.repairing import repair
from unbackdoor.model_files.scanning import scan

__all__ = [
    "ARCH_KEY",
    "Defended",
    "Difference",
    "ModelFile",
    "defend",
    "detect",
    "diff",
    "evaluate",
    "load_model",
    "open_model",
    "repair",
    "scan",
]
