"""Figures for pages that show more than a report: rates before and after, pictures with models' answers, curves.

Plain values, which the macros of the same name in `templates/figures.html` show.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

_DATA_URI = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table of rates.

    Attributes:
        name: short, for example "ASR".
        meaning: one line, for example "stamped images answered with the attacker's class".
        better: which direction is good.
    """

    name: str
    meaning: str
    better: Literal["higher", "lower"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: a model, and for each column how many of how many, or None where it was not measured."""

    name: str
    detail: str = ""
    counts: tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Rates as large numbers with their counts and a bar each; one row a model."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    caption: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image, as a data URI, and what each model answered to it, in the order of the gallery's models.

    Raises:
        ValueError: the image is not a base64 data URI of a PNG, JPEG, GIF or WebP.
    """

    image: str
    caption: str
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        if not _DATA_URI.fullmatch(self.image):
            raise ValueError(f"image: expected a base64 data URI of a picture, got {self.image[:40]!r}")


@dataclass(frozen=True, kw_only=True)
class Example:
    """Views of one thing, for example without and with the trigger; `truth` is its class."""

    truth: str
    pictures: tuple[Picture, ...]


class Answer(NamedTuple):
    """What a model answered, and whether that is "right", "wrong" or "hijacked"."""

    model: str
    answer: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Cards of images; under each image what every model says, marked right, wrong, or the attacker's class.

    Raises:
        ValueError: an answer is missing.
    """

    examples: Sequence[Example]
    models: Sequence[str]
    target: str

    def __post_init__(self) -> None:
        for example in self.examples:
            for picture in example.pictures:
                if len(picture.answers) != len(self.models):
                    raise ValueError(
                        f"answers: expected {len(self.models)}, one a model, got {len(picture.answers)} to "
                        f"{example.truth!r}, {picture.caption!r}"
                    )

    def answers(self, example: Example, picture: Picture) -> list[Answer]:
        """To one picture, by every model."""
        kinds = {self.target: "hijacked", example.truth: "right"}
        return [
            Answer(model, answer, kinds.get(answer, "wrong"))
            for model, answer in zip(self.models, picture.answers, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line through values, in pieces where some are missing; `words` say what it shows."""

    words: str
    pieces: Sequence[str]


def curve(values: Sequence[float | None], name: str) -> Curve:
    """A line through the values, with the smallest and the largest in words; gaps where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return Curve(words=f"{name}: no finite value", pieces=())
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    step = 100 / max(1, len(values) - 1)
    points: list[list[str]] = [[]]
    for index, value in enumerate(values):
        if value is None:
            points.append([])
        else:
            points[-1].append(f"{index * step:.2f},{(high - value) / span * 40:.2f}")
    return Curve(
        words=f"{name}: {known[0]:.4g} first, {known[-1]:.4g} last, from {low:.4g} to {high:.4g}",
        pieces=[" ".join(part if len(part) > 1 else 2 * part) for part in points if part],  # a lone value is a dot
    )
