"""What came of a model file: repaired and measured, or compared with another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unbackdoor.findings.rates import Evaluation, effectiveness
from unbackdoor.findings.report import Report


@dataclass(frozen=True)
class Defended:
    """What `defend` did.

    Attributes:
        report: what was read, scored, pruned, trained, left alone, and why.
        before, after: rates on the whole test set, where they were asked for.
        seconds: the method alone, without reading and measuring.
    """

    report: Report
    before: Evaluation | None
    after: Evaluation | None
    seconds: float

    @property
    def effectiveness(self) -> float | None:
        """DER, where an attack was measured before and after."""
        return effectiveness(self.before, self.after)

    def record(self) -> dict[str, Any]:
        """Settings, rates, curves and time, ready for JSON."""
        report = self.report.to_dict()
        return {
            "schema_version": 1,
            "method": {"name": report["method"], **report["settings"]},
            "data": report["data"],
            "before": None if self.before is None else self.before.to_dict(),
            "after": None if self.after is None else self.after.to_dict(),
            "der": self.effectiveness,
            "pruned": self.report.pruned,
            "scaled": self.report.scaled,
            "stages": report["stages"],
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Difference:
    """What differs between two files in one tensor.

    Attributes:
        name: of the tensor.
        kind: "values", "shape", "dtype", "only in A" or "only in B".
        channels: first-dimension indices with different values.
        total: the size of that dimension.
        detail: shapes or dtypes, for a reader.
    """

    name: str
    kind: str
    channels: tuple[int, ...] = ()
    total: int = 0
    detail: str = ""
