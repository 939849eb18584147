"""ACC, ASR, RA and DER, with counts."""

from unbackdoor.metrics.evaluate import evaluate_model, predict
from unbackdoor.metrics.rates import Evaluation, Rate, accuracy, attack_success, defence_effectiveness, read_evaluation

__all__ = [
    "Evaluation",
    "Rate",
    "accuracy",
    "attack_success",
    "defence_effectiveness",
    "evaluate_model",
    "predict",
    "read_evaluation",
]
