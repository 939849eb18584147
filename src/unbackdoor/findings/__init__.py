"""What was found, as plain values: no tensors, no torch and no renderer, so that a page can be made anywhere."""

from unbackdoor.findings.damage import Damage
from unbackdoor.findings.detection import ClassFinding, Detection
from unbackdoor.findings.files import Defended, Difference
from unbackdoor.findings.rates import (
    RATES,
    Evaluation,
    Rate,
    defence_effectiveness,
    effectiveness,
    read_evaluation,
)
from unbackdoor.findings.report import (
    SCHEMA_VERSION,
    ClassifierReport,
    DataReport,
    LayerReport,
    Remark,
    Report,
    Stage,
)
from unbackdoor.findings.values import NO_PROOF, finite
from unbackdoor.findings.witness import ClassWitness, FoundTrigger, PushingChannel, StampedSurrogate, Witness

__all__ = [
    "NO_PROOF",
    "RATES",
    "SCHEMA_VERSION",
    "ClassFinding",
    "ClassWitness",
    "ClassifierReport",
    "Damage",
    "DataReport",
    "Defended",
    "Detection",
    "Difference",
    "Evaluation",
    "FoundTrigger",
    "LayerReport",
    "PushingChannel",
    "Rate",
    "Remark",
    "Report",
    "Stage",
    "StampedSurrogate",
    "Witness",
    "defence_effectiveness",
    "effectiveness",
    "finite",
    "read_evaluation",
]
