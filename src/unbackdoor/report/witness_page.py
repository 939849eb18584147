"""What the witnesses say as a page, or as a section of a scan's page: plain values for its templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from unbackdoor.findings import FoundTrigger, Witness
from unbackdoor.report import figures, summary, witness
from unbackdoor.report.pages import page

#: Classes shown at once, and at most.
FIRST, MOST = 10, 60


def render(found: Witness) -> str:
    """The whole page."""
    name = (re.split(r"[\\/]", found.source)[-1] if found.source else "") or "A model in memory"
    return page("witness.html", title=name, witness=WitnessView(found))


class ClassRow(NamedTuple):
    """A class in the table; `scores` are in the order of the witnesses, and `width` is of its bar, in percent."""

    label: int
    suspected: bool
    scores: Sequence[str]
    z: str
    width: float


class TriggerCard(NamedTuple):
    """A trigger with pictures."""

    heading: str
    words: str
    change: figures.Picture
    gallery: figures.Gallery


@dataclass(frozen=True)
class WitnessView:
    """A finding as its page shows it.

    Attributes:
        found: the finding.
        level: of the sections' headings.
    """

    found: Witness
    level: int = 2

    @property
    def headline(self) -> str:
        """What was found."""
        return witness.headline(self.found)

    @property
    def names(self) -> dict[str, str]:
        """A witness -> what it asks."""
        return witness.MEANINGS

    @property
    def rows(self) -> list[ClassRow]:
        """The classes, those that stand out most first."""
        ranked = self.found.ranked[:MOST]
        top = max([*(one.z or 0.0 for one in ranked), self.found.limit or 0.0, 1e-9])
        return [
            ClassRow(
                label=one.label,
                suspected=one.label in self.found.suspects,
                scores=[summary.signed(one.scores.get(name)) for name in witness.MEANINGS],
                z=summary.signed(one.z),
                width=round(100 * max(0.0, one.z or 0.0) / top, 1),
            )
            for one in ranked
        ]

    @property
    def parts(self) -> tuple[list[ClassRow], list[ClassRow]]:
        """The rows that are shown at once, and those that are folded away."""
        return self.rows[:FIRST], self.rows[FIRST:]

    @property
    def unlisted(self) -> int:
        """How many classes are in the JSON report alone."""
        return max(0, len(self.found.classes) - MOST)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The numbers behind the headline."""
        found = self.found
        p = "cannot tell" if found.p is None else f"{found.p:.3g} (at or below {found.alpha:.3g}: a suspect)"
        z = summary.signed(found.statistic) + ("" if found.limit is None else f" (limit {found.limit:+.2f})")
        networks = f"{found.honest:,}; the smallest possible p is {found.least:.3g}"
        return [("p", p), ("Largest z", z), ("Honest networks to compare with", networks), ("Seed", str(found.seed))]

    @property
    def triggers(self) -> list[TriggerCard]:
        """The reconstructed triggers on generated images."""
        return [_card(one) for one in self.found.triggers]

    @property
    def notes(self) -> list[str]:
        """What a reader should know."""
        return [*(f"{name} could not look: {why}" for name, why in self.found.missing.items()), *self.found.notes]


def _card(one: FoundTrigger) -> TriggerCard:
    examples = [
        figures.Example(
            truth=f"class {shown.answer_before}",
            pictures=(
                _picture(shown.before, "generated", shown.answer_before),
                _picture(shown.after, "with the trigger", shown.answer_after),
            ),
        )
        for shown in one.pictures
    ]
    words = f"{witness.sized(one.form, one.size).capitalize()}. It sends {one.moved:.0%} of the generated images there."
    gallery = figures.Gallery(examples=examples, models=("answer",), target=f"class {one.label}")
    change = figures.Picture(image=one.change, caption="what it changes, made visible", answers=())
    return TriggerCard(heading=f"To class {one.label}", words=words, change=change, gallery=gallery)


def _picture(image: str, caption: str, answer: int) -> figures.Picture:
    return figures.Picture(image=image, caption=caption, answers=(f"class {answer}",))
