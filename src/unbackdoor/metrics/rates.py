"""ACC, ASR and RA (the share of triggered images with their true class), counted from predictions.

ACC is over the whole clean test set, ASR and RA over the triggered images whose true class is not the target. Some
published scripts count images of the target class in the ASR, or leave them out of the ACC.
"""

from __future__ import annotations

from torch import Tensor

from unbackdoor.findings import Rate


def accuracy(predictions: Tensor, labels: Tensor) -> Rate:
    """ACC: the share of (N,) predictions that equal the (N,) true classes."""
    return Rate(int((predictions == labels).sum()), len(labels))


def attack_success(predictions: Tensor, labels: Tensor, targets: Tensor | int) -> tuple[Rate, Rate]:
    """ASR and RA.

    Args:
        predictions: (N,) classes predicted for triggered images.
        labels: (N,) their true classes.
        targets: the attacker's class, or (N,) one per image; images whose true class it is are not counted.
    """
    others = labels != targets
    total = int(others.sum())
    asr = int(((predictions == targets) & others).sum())
    ra = int((predictions[others] == labels[others]).sum())
    return Rate(asr, total), Rate(ra, total)
