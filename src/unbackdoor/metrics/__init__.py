"""Measure ACC, ASR, RA and the target's recall, and check beforehand that they can be measured."""

from unbackdoor.metrics.evaluate import evaluate_model, predict, target_of
from unbackdoor.metrics.measure import measure
from unbackdoor.metrics.rates import accuracy, attack_success, recall
from unbackdoor.metrics.trial import check_answer, check_device

__all__ = [
    "accuracy",
    "attack_success",
    "check_answer",
    "check_device",
    "evaluate_model",
    "measure",
    "predict",
    "recall",
    "target_of",
]
