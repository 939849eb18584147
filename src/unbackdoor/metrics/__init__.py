"""Measure ACC, ASR and RA, and check beforehand that they can be measured."""

from unbackdoor.metrics.evaluate import evaluate_model, predict
from unbackdoor.metrics.measure import measure
from unbackdoor.metrics.rates import accuracy, attack_success
from unbackdoor.metrics.trial import check_answer, check_device

__all__ = [
    "accuracy",
    "attack_success",
    "check_answer",
    "check_device",
    "evaluate_model",
    "measure",
    "predict",
]
