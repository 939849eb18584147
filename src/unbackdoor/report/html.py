"""The report as one self-contained page: what its templates show, as plain values.

`render` makes the whole page. Another page extends `page.html`, imports `sections.html`, and shows a report by
its macros `head` and `report`, which want a `View`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jinja2 import Template

from unbackdoor.findings import LayerReport, Report, Stage
from unbackdoor.report import damage, strip, summary
from unbackdoor.report.figures import Curve, curve
from unbackdoor.report.pages import page
from unbackdoor.report.witness_page import WitnessView

LISTED = 24  # channels listed in words, a layer
OPEN_LAYERS = 8  # of the layers with outliers, how many are unfolded


def render(report: Report, *, title: str | None = None, template: str | Template = "report.html") -> str:
    """The whole page of one report.

    Args:
        report: what to show.
        title: of the page and of the window; by default the file's name.
        template: one that extends it, for a page with more on it.
    """
    name = title or (re.split(r"[\\/]", report.source)[-1] if report.source else "") or "A model in memory"
    return page(template, title=name, report=View(report))


class Alarm(NamedTuple):
    """A box that cannot be overlooked."""

    heading: str
    words: str
    groups: Sequence[summary.Group]


class Tile(NamedTuple):
    """A total as a large number; `kind` is its mark, if it has one."""

    kind: str
    number: int
    label: str
    detail: str


class Listing(NamedTuple):
    """The first of many things, in words; `kind` is their mark, if they have one."""

    label: str
    kind: str
    items: Sequence[str]
    more: int


class Row(NamedTuple):
    """A layer in the overview; `found` are its counts: a mark, a number and a word each."""

    layer: LayerReport
    anchor: str
    strip: strip.Strip
    found: Sequence[tuple[str, int, str]]


class Card(NamedTuple):
    """A layer on its own."""

    layer: LayerReport
    anchor: str
    strip: strip.Strip
    found: Sequence[tuple[str, int, str]]
    unfolded: bool
    rule: str
    scores: str
    largest: str
    thresholds: Sequence[str]
    listings: Sequence[Listing]


class Training(NamedTuple):
    """A stage with its curves."""

    stage: Stage
    words: str
    curves: tuple[Curve, Curve]


@dataclass(frozen=True)
class View:
    """A report as its page shows it.

    Attributes:
        report: what was found.
        prefix: of the anchors of its layers, so that two reports can share a page.
        level: of the sections' headings.
    """

    report: Report
    prefix: str = "layer"
    level: int = 2

    @property
    def headline(self) -> str:
        """What was found, in one or two sentences."""
        return summary.headline(self.report)

    @property
    def images(self) -> str:
        """Which images the method was given."""
        return summary.data(self.report.data) if self.report.data else ""

    @property
    def trained_only(self) -> bool:
        """Whether weights were changed as a whole, and no layer was scored."""
        return not self.report.layers and bool(self.report.stages or self.report.story)

    @property
    def witness(self) -> WitnessView | None:
        """What the witnesses say, where they were asked."""
        return None if self.report.witness is None else WitnessView(self.report.witness, level=self.level)

    @property
    def alarms(self) -> list[Alarm]:
        """What is not covered, and a warning if more is pruned than in any network measured so far."""
        found = []
        if self.report.not_covered:
            groups = summary.group(self.report.not_covered)
            found.append(Alarm("Incomplete", summary.not_covered(self.report), groups))
        if self.report.no_witness:
            found.append(Alarm("Not looked deeper", self.report.no_witness, ()))
        if self.report.unusual is not None:
            found.append(Alarm("Unusually many outliers", self.report.unusual, ()))
        return found

    @property
    def damage(self) -> list[str]:
        """What accuracy the repair is predicted to cost, in words."""
        return damage.of_report(self.report)

    @property
    def tiles(self) -> list[Tile]:
        """The totals."""
        report, layers = self.report, self.report.layers
        high, low, none = (
            sum(map(len, found))
            for found in (
                [layer.pruned_high for layer in layers],
                [layer.pruned_low for layer in layers],
                [layer.not_finite for layer in layers],
            )
        )
        tiles = [
            Tile("", len(layers), _many(len(layers), "layer", "scored"), f"{report.channels:,} channels"),
            Tile("high", high, _many(high, "outlier", "above"), self.prunes),
            Tile("low", low, _many(low, "outlier", "below"), self.prunes),
            Tile("near", report.scaled, _many(report.scaled, "near outlier"), self.scales),
        ]
        if none:
            tiles.append(Tile("none", none, "without a finite score", self.prunes))
        if report.classifier:
            weights = len(report.classifier.cut)
            tiles.append(Tile("", weights, _many(weights, "classifier weight"), self.zeroes))
        return tiles

    @property
    def prunes(self) -> str:
        """What happens to an outlier."""
        return summary.consequence(self.report)[0]

    @property
    def scales(self) -> str:
        """What happens to a near outlier."""
        return summary.consequence(self.report)[1]

    @property
    def zeroes(self) -> str:
        """What happens to the weights that the classifier step chose."""
        return "set to zero" if self.report.changed else "set to zero by a repair"

    @functools.cached_property
    def axis(self) -> strip.Axis:
        """The one that all strips share."""
        return strip.common_axis(self.report.layers)

    @property
    def axis_base(self) -> int:
        """Where it lies in a strip, in pixels from the top."""
        return strip.TOP + strip.PLOT

    @property
    def thinned_above(self) -> int | None:
        """Of how many untouched channels a row of the overview draws all, where some row has more."""
        return strip.ROW_DOTS if any(len(x.scores) > strip.ROW_DOTS for x in self.report.layers) else None

    def rows(self) -> Iterator[Row]:
        """The overview, a layer at a time."""
        axis = self.axis
        for index, layer in enumerate(self.report.layers):
            yield Row(layer, f"{self.prefix}-{index}", strip.row(layer, axis), _found(layer))

    def cards(self) -> Iterator[Card]:
        """Each layer with its strip, its thresholds, and its outlier channels by number."""
        axis, budget, unfolded = self.axis, strip.Budget.of(self.report), _unfolded(self.report.layers)
        for index, layer in enumerate(self.report.layers):
            yield Card(
                layer=layer,
                anchor=f"{self.prefix}-{index}",
                strip=strip.detail(layer, axis, budget),
                found=_found(layer),
                unfolded=index in unfolded,
                rule=summary.RULES.get(layer.rule, layer.rule),
                scores=f"{summary.number(layer.mean)}, {summary.number(layer.std, digits=3)}",
                largest=summary.signed(summary.top_z(layer)),
                thresholds=[
                    f"{name} {summary.number(limit)} (z {summary.signed(layer.distance(limit))})"
                    for name, limit in (("lower", layer.lower), ("band", layer.band), ("upper", layer.upper))
                    if limit is not None
                ],
                listings=_listings(layer),
            )

    @property
    def class_means(self) -> strip.ClassMeans | None:
        """The classifier's classes, where there are means to compare."""
        step = self.report.classifier
        return None if step is None else strip.class_means(step.class_means, step.guessed_class)

    @property
    def cut_features(self) -> Listing:
        """The weights that the classifier step sets to zero."""
        step = self.report.classifier
        gaps = {} if step is None else dict(zip(step.cut, step.gaps, strict=False))
        label = "Input features, and how far each weight lies above the mean of the other classes"
        return _listing(label, "", [f"{feature} ({gap:+.3g})" for feature, gap in gaps.items()])

    @property
    def trainings(self) -> list[Training]:
        """Every stage of a method that trains."""
        return [
            Training(stage, summary.stage(stage), (curve(stage.losses, "loss"), curve(stage.accuracies, "accuracy")))
            for stage in self.report.stages
        ]

    @property
    def left_alone(self) -> Sequence[summary.Group]:
        """What was read, and is not this method's to change."""
        return summary.group(self.report.left_alone)

    @property
    def unpaired(self) -> Sequence[summary.Group]:
        """The norms without a layer."""
        norms = self.report.unpaired_norms
        return [summary.Group("", "of no single layer", norms)] if norms else []

    @property
    def notes(self) -> Sequence[summary.Group]:
        """The layers' notes, each once."""
        return summary.notes(self.report)

    @property
    def settings(self) -> dict[str, str]:
        """Of the method, as text."""
        return summary.settings(self.report.settings)

    @property
    def a_guess(self) -> str:
        """What the classifier step's class is."""
        return summary.A_GUESS

    @property
    def nothing_found(self) -> str:
        """The warning for a report without outliers."""
        return summary.NOTHING_FOUND if not self.report.pruned + self.report.immutable else ""


def _unfolded(layers: Sequence[LayerReport]) -> set[int]:
    """The layers whose outliers lie farthest out; without outliers the first, to show what a strip looks like."""
    reach = {
        index: max((abs(layer.z(channel) or 0.0) for channel in layer.pruned), default=0.0)
        for index, layer in enumerate(layers)
        if layer.pruned
    }
    return set(sorted(reach, key=lambda index: (-reach[index], index))[:OPEN_LAYERS]) or {0}


def _found(layer: LayerReport) -> list[tuple[str, int, str]]:
    """The counts of a layer: a mark and a word each, so that no colour is needed."""
    counts = [
        ("high", len(layer.pruned_high), "above"),
        ("low", len(layer.pruned_low), "below"),
        ("none", len(layer.not_finite), "no score"),
        ("high", len(layer.immutable), "cannot be pruned"),
        ("near", len(layer.scaled), "near"),
    ]
    return [count for count in counts if count[1]]


def _listings(layer: LayerReport) -> list[Listing]:
    listings = [
        _listing("Outliers above (z)", "high", _with_z(layer, layer.pruned_high)),
        _listing("Outliers below (z)", "low", _with_z(layer, layer.pruned_low)),
        _listing("Outliers that cannot be pruned (z)", "high", _with_z(layer, layer.immutable)),
        _listing("Near outliers (z)", "near", _with_z(layer, layer.scaled)),
        _listing("Without a finite score (NaN or infinite)", "none", [str(c) for c in layer.not_finite]),
    ]
    return [found for found in listings if found.items]


def _listing(label: str, kind: str, items: Sequence[str]) -> Listing:
    return Listing(label, kind, items[:LISTED], max(len(items) - LISTED, 0))


def _with_z(layer: LayerReport, channels: Sequence[int]) -> list[str]:
    return [f"{channel} ({summary.signed(layer.z(channel))})" for channel in summary.strongest(layer, channels)]


def _many(number: int, noun: str, more: str = "") -> str:
    return f"{noun}{'' if number == 1 else 's'} {more}".strip()
