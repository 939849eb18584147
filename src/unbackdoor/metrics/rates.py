"""ACC, ASR, RA (the share of triggered images with their true class) and recall, counted from predictions.

ACC is over the whole clean test set, ASR and RA over the triggered images whose true class is not the target. Some
published scripts count images of the target class in the ASR, or leave them out of the ACC. The recall is over the
clean images of the target class: a repair that never answers it again has an ASR of 0, and is none.
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


def recall(predictions: Tensor, labels: Tensor, target: int) -> Rate:
    """The share of the clean images of a class that are given it.

    Args:
        predictions: (N,) classes predicted for clean images.
        labels: (N,) their true classes.
        target: the class.
    """
    own = labels == target
    return Rate(int((predictions[own] == target).sum()), int(own.sum()))
