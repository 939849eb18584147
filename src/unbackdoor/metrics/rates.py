"""ACC, ASR and RA counted from predictions.

Of ten published evaluation scripts some count target-class images into the ASR, some drop the target class from
the ACC; here ACC is over the whole clean test set, ASR and RA over the triggered images whose true class is not
the target.
"""

from __future__ import annotations

from torch import Tensor

from unbackdoor.findings import Rate


def accuracy(predictions: Tensor, labels: Tensor) -> Rate:
    """ACC: (N,) predicted classes against (N,) true classes."""
    return Rate(int((predictions == labels).sum()), len(labels))


def attack_success(predictions: Tensor, labels: Tensor, targets: Tensor | int) -> tuple[Rate, Rate]:
    """ASR and RA.

    Args:
        predictions: (N,) classes predicted for triggered images.
        labels: (N,) their true classes.
        targets: the attacker's class, or (N,) the class that is asked for each image; rows whose true class it is are
            left out here.
    """
    others = labels != targets
    total = int(others.sum())
    asr = int(((predictions == targets) & others).sum())
    ra = int((predictions[others] == labels[others]).sum())
    return Rate(asr, total), Rate(ra, total)
