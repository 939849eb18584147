"""What was found, as plain values: no tensors, no torch and no renderer, so that a page can be made anywhere."""

from unbackdoor.findings.damage import Damage
from unbackdoor.findings.detection import ClassFinding, Detection
from unbackdoor.findings.files import Defended, Difference
from unbackdoor.findings.rates import Evaluation, Rate, defence_effectiveness, effectiveness, read_evaluation
from unbackdoor.findings.report import (
    SCHEMA_VERSION,
    ClassifierReport,
    DataReport,
    LayerReport,
    Remark,
    Report,
    Stage,
)
from unbackdoor.findings.values import finite

__all__ = [
    "SCHEMA_VERSION",
    "ClassFinding",
    "ClassifierReport",
    "Damage",
    "DataReport",
    "Defended",
    "Detection",
    "Difference",
    "Evaluation",
    "LayerReport",
    "Rate",
    "Remark",
    "Report",
    "Stage",
    "defence_effectiveness",
    "effectiveness",
    "finite",
    "read_evaluation",
]
