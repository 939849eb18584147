"""Blocks for pages that show more than a report: rates before and after, and pictures with two models' answers.

They return markup for `html.section`; whatever they are given as text is escaped here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unbackdoor.report.escape import Html, html

_DATA_URI = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, kw_only=True)
class Rate:
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
class Picture:
    """One image, as a data URI, and what each model answered to it, in the order of the gallery's models."""

    image: str
    caption: str
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Example:
    """Views of one thing, for example without and with the trigger; `truth` is its class."""

    truth: str
    pictures: tuple[Picture, ...]


def rates_table(columns: Sequence[Rate], rows: Sequence[Row], *, caption: str) -> Html:
    """Rates as large numbers with their counts and a bar each; one row a model."""
    head = "".join(
        f'<th scope="col"><b>{html(c.name)}</b> <span class="aim">{c.better} is better</span>'
        f'<span class="quiet">{html(c.meaning)}</span></th>'
        for c in columns
    )
    body = "".join(_rates_row(columns, row) for row in rows)
    return Html(
        f'<div class="scroll"><table class="rates"><caption>{html(caption)}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def gallery(examples: Sequence[Example], *, models: Sequence[str], target: str) -> Html:
    """Cards of images; under each image what every model says, marked right, wrong, or the attacker's class.

    Raises:
        ValueError: an image is not a base64 data URI of a PNG, JPEG, GIF or WebP, or an answer is missing.
    """
    return Html(f'<ul class="gallery">{"".join(_card(example, models, target) for example in examples)}</ul>')


def _rates_row(columns: Sequence[Rate], row: Row) -> str:
    cells = []
    for column, count in zip(columns, row.counts, strict=True):
        if count is None or not count[1]:
            cells.append('<td><span class="quiet">not measured</span></td>')
            continue
        hits, total = count
        percent = 100 * hits / total
        cells.append(
            f'<td class="{column.better}"><span class="rate">{percent:.1f}<small> %</small></span>'
            f'<span class="bar" aria-hidden="true"><i style="width:{percent:.1f}%"></i></span>'
            f'<span class="quiet">{hits:,} of {total:,}</span></td>'
        )
    detail = f'<span class="quiet">{html(row.detail)}</span>' if row.detail else ""
    return f'<tr><th scope="row"><b>{html(row.name)}</b>{detail}</th>{"".join(cells)}</tr>'


def _card(example: Example, models: Sequence[str], target: str) -> str:
    views = []
    for picture in example.pictures:
        if not _DATA_URI.fullmatch(picture.image):
            raise ValueError(f"expected an image as a base64 data URI, got {picture.image[:40]!r}")
        answers = "".join(
            _answer(model, answer, example.truth, target) for model, answer in zip(models, picture.answers, strict=True)
        )
        alt = html(f"{example.truth}, {picture.caption}")
        views.append(
            f'<figure><img src="{picture.image}" alt="{alt}" width="96" height="96" loading="lazy">'
            f"<figcaption>{html(picture.caption)}</figcaption><dl>{answers}</dl></figure>"
        )
    return f'<li class="card"><h4>{html(example.truth)}</h4><div class="views">{"".join(views)}</div></li>'


def _answer(model: str, answer: str, truth: str, target: str) -> str:
    if answer == truth:
        kind, sign, word = "right", "&#10003;", "right"
    elif answer == target:
        kind, sign, word = "hijacked", "&#10007;", "wrong: the attacker's class"
    else:
        kind, sign, word = "wrong", "&#10007;", "wrong"
    return (
        f'<div><dt>{html(model)}</dt><dd class="{kind}"><span aria-hidden="true">{sign}</span> {html(answer)}'
        f'<span class="unseen"> ({word})</span></dd></div>'
    )


def curve(values: Sequence[float | None], name: str) -> Html:
    """A line through the values, with the smallest and the largest written beside it; gaps where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return Html(f'<figure class="curve"><figcaption>{html(name)}: no finite value</figcaption></figure>')
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    step = 100 / max(1, len(values) - 1)
    points: list[list[str]] = [[]]
    for index, value in enumerate(values):
        if value is None:
            points.append([])
        else:
            points[-1].append(f"{index * step:.2f},{(high - value) / span * 40:.2f}")
    lines = "".join(f'<polyline points="{" ".join(part)}"/>' for part in points if part)
    text = f"{name}: {known[0]:.4g} first, {known[-1]:.4g} last, from {low:.4g} to {high:.4g}"
    return Html(
        f'<figure class="curve"><svg viewBox="-1 -2 102 44" preserveAspectRatio="none" role="img" '
        f'aria-label="{html(text)}">{lines}</svg><figcaption>{html(text)}</figcaption></figure>'
    )
