"""The functions on model files: `scan`, `repair`, `defend`, `detect`, `diff`, `evaluate`, `load_model`,
`predict_damage`, `witness`."""

from unbackdoor.api.damage import predict_damage
from unbackdoor.api.defending import defend
from unbackdoor.api.detecting import detect
from unbackdoor.api.differences import diff
from unbackdoor.api.evaluating import evaluate
from unbackdoor.api.reading import ModelFile, load_model, open_model
from unbackdoor.api.repairing import repair
from unbackdoor.api.scanning import scan
from unbackdoor.api.witnessing import witness
from unbackdoor.checkpoint import ARCH_KEY

__all__ = [
    "ARCH_KEY",
    "ModelFile",
    "defend",
    "detect",
    "diff",
    "evaluate",
    "load_model",
    "open_model",
    "predict_damage",
    "repair",
    "scan",
    "witness",
]
