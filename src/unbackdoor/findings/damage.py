"""What an edit is predicted to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unbackdoor.findings.values import as_json, plain, rendered

SCHEMA_VERSION = 1
#: A class whose recall falls by more than this share is named.
NOTABLE = 0.1


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What an edit of a network is predicted to cost, measured on generated images.

    Attributes:
        loss: of accuracy, in points.
        low, high: 90 % of the losses that the meter was calibrated on lay within such bounds.
        changed: kind of image -> share of the answers that changed.
        images: of each kind.
        recall: of each class, the share of the images of its own that are no longer answered with it; None where none
            was.
        apart: the class whose logit moved most against the others, which the loss leaves out: where a repair removes a
            backdoor, the attacker's. None where none moved, or there are two.
        calibrated_on: the edits and networks behind the prediction.
        notes: which images the network takes, and how that is known.
    """

    loss: float
    low: float
    high: float
    changed: Mapping[str, float]
    images: int
    recall: tuple[float | None, ...]
    apart: int | None
    calibrated_on: str
    notes: tuple[str, ...] = ()
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def summary(self) -> str:
        """The loss and its interval in words."""
        return f"{self.loss:.1f} points (90 % of such losses: {self.low:.1f} to {self.high:.1f})"

    @property
    def fallen(self) -> tuple[int, ...]:
        """The classes that lost a notable share of their images, those that lost most first."""
        lost = [(share, label) for label, share in enumerate(self.recall) if share is not None and share > NOTABLE]
        return tuple(label for _, label in sorted(lost, key=lambda pair: (-pair[0], pair[1])))

    def to_json(self) -> str:
        """Everything, as JSON; equal predictions give equal bytes."""
        return as_json(plain(self))

    def to_text(self) -> str:
        """For a terminal or a log; plain characters only."""
        return rendered(self, "text")
