"""ACC, ASR, RA and the target's recall as counts, and DER from two of each: arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


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
        recall: clean images of the target class still predicted as it; None without an attack, and where each class has
            a target of its own.
    """

    acc: Rate
    asr: Rate | None = None
    ra: Rate | None = None
    recall: Rate | None = None

    @property
    def rates(self) -> dict[str, Rate]:
        """Those that were measured, by name."""
        return {name: rate for name in RATES if (rate := getattr(self, name)) is not None}

    def to_dict(self) -> dict[str, Any]:
        """Counts and shares, ready for JSON."""
        measured = {name: {**asdict(rate), "value": rate.value} for name, rate in self.rates.items()}
        return {name: measured.get(name) for name in RATES}

    def to_csv(self) -> str:
        """BackdoorBench's table: a header and one row of shares in [0, 1], empty where nothing was counted."""
        values = [None if rate is None else rate.value for rate in (self.acc, self.asr, self.ra)]
        row = ",".join("" if value is None else str(value) for value in values)
        return f"test_acc,test_asr,test_ra\n{row}\n"


#: The names of an evaluation's rates.
RATES = tuple(field.name for field in fields(Evaluation))


def read_evaluation(record: Mapping[str, Any]) -> Evaluation:
    """The inverse of `Evaluation.to_dict`; older records have no recall."""
    acc, *rest = (
        None if record.get(name) is None else Rate(record[name]["hits"], record[name]["total"]) for name in RATES
    )
    assert acc is not None
    return Evaluation(acc, *rest)


def defence_effectiveness(*, acc_before: float, acc_after: float, asr_before: float, asr_after: float) -> float:
    """DER = [max(0, ASR drop) - max(0, ACC drop) + 1] / 2, in [0, 1]; 0.5 is no change, 1 a free full repair."""
    return (max(0.0, asr_before - asr_after) - max(0.0, acc_before - acc_after) + 1) / 2


def effectiveness(before: Evaluation | None, after: Evaluation | None) -> float | None:
    """DER of two evaluations; None where one of the four rates was not measured."""
    rates = [rate for found in (before, after) if found is not None for rate in (found.acc, found.asr)]
    values = [rate.value for rate in rates if rate is not None and rate.value is not None]
    if len(values) < 4:
        return None
    acc_before, asr_before, acc_after, asr_after = values
    return defence_effectiveness(acc_before=acc_before, acc_after=acc_after, asr_before=asr_before, asr_after=asr_after)
