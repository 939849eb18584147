"""ACC, ASR and RA from predictions, and DER from two of each: arithmetic only, with the counts kept.

Of ten published evaluation scripts some count target-class images into the ASR, some drop the target class from
the ACC; here ACC is over the whole clean test set, ASR and RA over the triggered images whose true class is not
the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Rate:
    """`hits` of `total`."""

    hits: int
    total: int

    @property
    def value(self) -> float | None:
        """hits / total in [0, 1]; None where there is nothing to count."""
        return self.hits / self.total if self.total else None


@dataclass(frozen=True)
class Evaluation:
    """What a network does on a test set.

    Attributes:
        acc: clean images predicted as their class, over all clean images.
        asr: triggered images of other classes predicted as the target; None without an attack.
        ra: the same images predicted as their own class; None without an attack.
    """

    acc: Rate
    asr: Rate | None = None
    ra: Rate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Counts and shares, ready for JSON."""
        return {
            name: None if rate is None else {**asdict(rate), "value": rate.value}
            for name, rate in (("acc", self.acc), ("asr", self.asr), ("ra", self.ra))
        }

    def to_csv(self) -> str:
        """BackdoorBench's table: a header and one row of shares in [0, 1], empty where nothing was counted."""
        values = [None if rate is None else rate.value for rate in (self.acc, self.asr, self.ra)]
        row = ",".join("" if value is None else str(value) for value in values)
        return f"test_acc,test_asr,test_ra\n{row}\n"


def read_evaluation(record: Mapping[str, Any]) -> Evaluation:
    """The inverse of `Evaluation.to_dict`."""
    acc, asr, ra = (
        None if record.get(name) is None else Rate(record[name]["hits"], record[name]["total"])
        for name in ("acc", "asr", "ra")
    )
    assert acc is not None
    return Evaluation(acc, asr, ra)


def accuracy(predictions: Tensor, labels: Tensor) -> Rate:
    """ACC: (N,) predicted classes against (N,) true classes."""
    return Rate(int((predictions == labels).sum()), len(labels))


def attack_success(predictions: Tensor, labels: Tensor, goals: Tensor | int) -> tuple[Rate, Rate]:
    """ASR and RA.

    Args:
        predictions: (N,) classes predicted for triggered images.
        labels: (N,) their true classes.
        goals: the attacker's class, or (N,) the class that is asked for each image; rows whose true class it is are
            left out here.
    """
    others = labels != goals
    total = int(others.sum())
    asr = int(((predictions == goals) & others).sum())
    ra = int((predictions[others] == labels[others]).sum())
    return Rate(asr, total), Rate(ra, total)


def defence_effectiveness(*, acc_before: float, acc_after: float, asr_before: float, asr_after: float) -> float:
    """DER = [max(0, ASR drop) - max(0, ACC drop) + 1] / 2, in [0, 1]; 0.5 is no change, 1 a free full repair."""
    return (max(0.0, asr_before - asr_after) - max(0.0, acc_before - acc_after) + 1) / 2
