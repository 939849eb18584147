"""ACC, ASR and RA, counted."""

from unbackdoor.metrics.evaluate import evaluate_model, predict
from unbackdoor.metrics.rates import accuracy, attack_success

__all__ = [
    "accuracy",
    "attack_success",
    "evaluate_model",
    "predict",
]
