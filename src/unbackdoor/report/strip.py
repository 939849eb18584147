"""One layer's channel scores as a strip of dots: what `templates/strip.svg` draws, as plain values.

x is z, the score's distance from its layer's mean in the layer's standard deviations: scores of different layers differ
by orders of magnitude, their z do not, so all strips of a page share one axis and can be compared by eye. y means
nothing: it only spreads the dots, the wider the more channels lie there.

Shapes tell what is what, colour repeats it: a dot is an untouched channel, a triangle an outlier (it points away from
the mean), a hollow diamond a near outlier. Positions along x are percentages and sizes are pixels, so that a strip
fills any width and its marks and words keep their size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from unbackdoor.findings import LayerReport, Report
from unbackdoor.report import summary
from unbackdoor.report.escape import short

FARTHEST_LOW, FARTHEST_HIGH = -8.0, 12.0
UNITS = 2000  # of the dots' own x coordinate
TOP, PLOT, BOTTOM = 18, 84, 22  # pixels: words on the thresholds, dots, axis
ROW = 26
ROW_DOTS, ROW_MARKS = 100, 20


@dataclass(frozen=True)
class Axis:
    """The common z axis, from `low` to `high`."""

    low: float
    high: float

    def at(self, z: float) -> float:
        """Where z lies, from 0 to 1; what is off the axis lies at its end."""
        share = (z - self.low) / (self.high - self.low)
        return 0.0 if share < 0.0 else 1.0 if share > 1.0 else share

    def holds(self, z: float) -> bool:
        """Whether z lies on the axis."""
        return self.low <= z <= self.high

    @property
    def ticks(self) -> tuple[int, ...]:
        """Whole numbers, few enough for a phone."""
        step = 1 if self.high - self.low <= 9 else 2 if self.high - self.low <= 18 else 4
        return tuple(range(math.ceil(self.low / step) * step, math.floor(self.high) + 1, step))

    @property
    def marks(self) -> list[tuple[str, str]]:
        """Each tick's place and words."""
        return [(_percent(self.at(z)), _whole(z)) for z in self.ticks]

    @property
    def label(self) -> str:
        """For who cannot see it."""
        return f"axis: z from {self.low:+g} to {self.high:+g}"


@dataclass(frozen=True)
class Budget:
    """How much is drawn of one layer, so that a page of many layers stays small."""

    dots: int
    marks: int
    tooltips: int

    @classmethod
    def of(cls, report: Report) -> Budget:
        """What each layer gets."""
        layers = max(len(report.layers), 1)
        return cls(
            dots=min(max(60_000 // layers, 100), 600),
            marks=min(max(18_000 // layers, 20), 2_000),
            tooltips=min(max(5_000 // layers, 10), 400),
        )


@dataclass(frozen=True, kw_only=True)
class Strip:
    """What is drawn of a layer.

    Attributes:
        empty: why nothing is; all else is empty then.
        label: what the picture shows, in words.
        height: of the picture, in pixels; `top` and `plot` where its dots begin and how high they spread.
        zone_top, zone_height: likewise of the tinted zones.
        zones: kind, place and width each.
        thresholds: name, place, distance of the word from its line, and where the word is anchored.
        units: of the dots' own x coordinate, and `dots` their path.
        marks: a kind and its marks, each a place, a height and a title or "".
        above, below: words on what lies off the axis, none or one.
        left_out: what is not drawn, in words.
    """

    empty: str = ""
    label: str = ""
    height: int = TOP + PLOT + BOTTOM
    top: int = TOP
    plot: int = PLOT
    zone_top: int = TOP
    zone_height: int = PLOT
    zones: Sequence[tuple[str, str, str]] = ()
    thresholds: Sequence[tuple[str, str, int, str]] = ()
    units: int = UNITS
    dots: str = ""
    marks: Sequence[tuple[str, Sequence[tuple[str, int, str]]]] = ()
    above: Sequence[str] = ()
    below: Sequence[str] = ()
    left_out: str = ""


@dataclass(frozen=True, kw_only=True)
class ClassMeans:
    """The classes' mean weights on one axis: a place and a title each; the guessed class with its words and anchor."""

    label: str
    least: str
    most: str
    dots: Sequence[tuple[str, str]]
    guess: Sequence[tuple[str, str, str, str]]


def common_axis(layers: Iterable[LayerReport]) -> Axis:
    """An axis that holds every threshold and score, as far as -8 and +12."""
    low, high = -4.0, 4.0
    for layer in layers:
        finite = [score for score in layer.scores if score is not None]
        ends = [
            layer.distance(x) for x in (*((min(finite), max(finite)) if finite else ()), *_thresholds(layer).values())
        ]
        low = min([low, *(math.floor(z) for z in ends if z is not None)])
        high = max([high, *(math.ceil(z) for z in ends if z is not None)])
    return Axis(max(low, FARTHEST_LOW), min(high, FARTHEST_HIGH))


def detail(layer: LayerReport, axis: Axis, budget: Budget) -> Strip:
    """The full strip of one layer, with its thresholds and a sentence on whatever is not drawn."""
    found = _by_kind(layer)
    if not found:
        return Strip(empty=_why_empty(layer))
    drawn = {kind: _few(kind, dots, budget.dots if kind == "plain" else budget.marks) for kind, dots in found.items()}
    crowd = _Crowd(found)
    tooltips, marks = budget.tooltips, []
    for kind in ("high", "low", "near"):  # outliers get their tooltips first
        marks += _marks(kind, drawn[kind], axis, layer, crowd, top=TOP, height=PLOT, tooltips=tooltips)
        tooltips = max(tooltips - len(drawn[kind]), 0)
    every = [dot.z for dots in found.values() for dot in dots]
    least, most = min(every), max(every)
    above, below = sum(1 for z in every if z > axis.high), sum(1 for z in every if z < axis.low)
    return Strip(
        label=f"{len(every):,} channel scores of {short(layer.path, 80)}: {len(found['high']):,} outliers above, "
        f"{len(found['low']):,} below, {len(found['near']):,} near outliers; "
        f"z from {least:+.1f} to {most:+.1f}",
        zones=_zones(layer, axis),
        thresholds=_threshold_lines(layer, axis),
        dots=_dots(drawn["plain"], axis, crowd, height=PLOT),
        marks=marks[::-1],
        above=[f"{above:,} off the axis, up to {most:+.1f}"] if above else (),
        below=[f"{below:,} off the axis, down to {least:+.1f}"] if below else (),
        left_out=_left_out(found, drawn),
    )


def row(layer: LayerReport, axis: Axis) -> Strip:
    """A strip of one line for the overview."""
    found = _by_kind(layer)
    if not found:
        return Strip(empty=_why_empty(layer))
    drawn = {kind: _few(kind, dots, ROW_DOTS if kind == "plain" else ROW_MARKS) for kind, dots in found.items()}
    crowd, top, plot = _Crowd(found), 3, ROW - 6
    marks = []
    for kind in ("near", "low", "high"):
        marks += _marks(kind, drawn[kind], axis, layer, crowd, top=top, height=plot, tooltips=0)
    return Strip(
        height=ROW,
        top=top,
        plot=plot,
        zone_top=0,
        zone_height=ROW,
        zones=_zones(layer, axis),
        dots=_dots(drawn["plain"], axis, crowd, height=plot),
        marks=marks,
    )


def class_means(means: Sequence[float | None], guess: int) -> ClassMeans | None:
    """The classes' mean weights, the guessed class marked; None where there is nothing to compare."""
    finite = [(mean, index) for index, mean in enumerate(means) if mean is not None]
    if len(finite) < 2 or min(finite)[0] == max(finite)[0]:
        return None
    least, most = min(finite)[0], max(finite)[0]
    dots: list[tuple[str, str]] = []
    chosen = []
    for mean, index in finite:
        at = 0.04 + 0.92 * (mean - least) / (most - least)
        title = f"class {index}: mean weight {summary.number(mean)}"
        if index == guess:
            anchor = "end" if at > 0.8 else "start" if at < 0.2 else "middle"
            chosen.append((_percent(at), title, f"class {index}", anchor))
        elif len(dots) < 2_000:
            dots.append((_percent(at), title))
    return ClassMeans(
        label=f"mean weight of {len(means):,} classes; the largest is that of class {guess}",
        least=summary.number(least, digits=3),
        most=summary.number(most, digits=3),
        dots=dots,
        guess=chosen,
    )


class _Dot(NamedTuple):
    z: float
    channel: int


class _Crowd:
    """How crowded each place of a layer's strip is, and from that how far its dots spread up and down."""

    WIDTH = 0.2

    def __init__(self, found: Mapping[str, Sequence[_Dot]]) -> None:
        bins = Counter(self._bin(dot.z) for dots in found.values() for dot in dots)
        smooth = {key: bins.get(key - 1, 0) + 2 * size + bins.get(key + 1, 0) for key, size in bins.items()}
        most = max(smooth.values())
        self._spread = {key: 0.25 + 0.75 * math.sqrt(size / most) for key, size in smooth.items()}

    def places(self, dots: Sequence[_Dot]) -> list[float]:
        """Each dot's place across the strip, from 0 to 1."""
        # The golden ratio's multiples fill the strip evenly and always in the same way; crowded places get more of it.
        shares = ((rank * 0.6180339887498949) % 1.0 - 0.5 for rank in range(1, len(dots) + 1))
        spreads = (self._spread[self._bin(dot.z)] for dot in dots)
        return [0.5 + 0.92 * share * spread for share, spread in zip(shares, spreads, strict=True)]

    def _bin(self, z: float) -> int:
        return math.floor((z if -1e9 < z < 1e9 else math.copysign(1e9, z)) / self.WIDTH)  # beyond that all are one


def _by_kind(layer: LayerReport) -> dict[str, list[_Dot]]:
    """Every channel that has a z, by rising z: outliers above and below, near outliers, and the plain rest."""
    kinds = dict.fromkeys(layer.scaled, "near") | dict.fromkeys(layer.pruned_low, "low")
    kinds |= dict.fromkeys(layer.pruned_high, "high")
    found: dict[str, list[_Dot]] = {"plain": [], "near": [], "low": [], "high": []}
    for channel, z in enumerate(map(layer.distance, layer.scores)):
        if z is not None:
            found[kinds.get(channel, "plain")].append(_Dot(z, channel))
    return {kind: sorted(dots) for kind, dots in found.items()} if any(found.values()) else {}


def _few(kind: str, dots: list[_Dot], most: int) -> list[_Dot]:
    """At most so many: the farthest of the outliers; of the others evenly through the sorted ones, both ends kept."""
    if len(dots) <= most:
        return dots
    if kind in ("high", "low"):
        return dots[-most:] if kind == "high" else dots[:most]
    return [dots[index * (len(dots) - 1) // (most - 1)] for index in range(most)]


def _dots(dots: Sequence[_Dot], axis: Axis, crowd: _Crowd, *, height: int) -> str:
    # One path of dots (lines of no length with round ends) takes a fifth of the bytes of as many circles. It has its
    # own stretched coordinates; non-scaling-stroke (in the style sheet) keeps the dots round.
    return "".join(
        f"M{round(axis.at(dot.z) * UNITS)} {round(y * height)}h0"
        for dot, y in zip(dots, crowd.places(dots), strict=True)
    )


def _marks(
    kind: str,
    dots: Sequence[_Dot],
    axis: Axis,
    layer: LayerReport,
    crowd: _Crowd,
    *,
    top: int,
    height: int,
    tooltips: int,
) -> list[tuple[str, list[tuple[str, int, str]]]]:
    """The kind and its marks, as a strip's `marks` holds them; nothing where there is no dot."""
    if not dots:
        return []
    what = {"high": "outlier above", "low": "outlier below", "near": "near outlier"}[kind]
    factors = dict(zip(layer.scaled, layer.factors, strict=False)) if tooltips else {}
    titled = {dot.channel for dot in sorted(dots, key=lambda dot: -abs(dot.z))[:tooltips]}
    marks = []
    for dot, y in zip(dots, crowd.places(dots), strict=True):
        title = ""
        if dot.channel in titled:
            score = summary.number(layer.scores[dot.channel])
            factor = f", factor {factors[dot.channel]:.3g}" if dot.channel in factors else ""
            title = f"channel {dot.channel}: score {score}, z {summary.signed(dot.z)}, {what}{factor}"
        marks.append((_percent(axis.at(dot.z)), top + round(y * height), title))
    return [(kind, marks)]


def _thresholds(layer: LayerReport) -> dict[str, float]:
    thresholds = {"lower": layer.lower, "band": layer.band, "upper": layer.upper}
    return {name: threshold for name, threshold in thresholds.items() if threshold is not None}


def _zones(layer: LayerReport, axis: Axis) -> list[tuple[str, str, str]]:
    """What lies beyond the thresholds is tinted, and so is the band."""
    z = {name: layer.distance(threshold) for name, threshold in _thresholds(layer).items()}
    lower, band, upper = z.get("lower"), z.get("band"), z.get("upper")
    zones = []
    if lower is not None:
        zones.append(("zone-out", axis.low, lower))
    if upper is not None:
        zones.append(("zone-out", upper, axis.high))
    if band is not None:
        zones.append(("zone-band", band, axis.high if upper is None else upper))
    ends = [(name, axis.at(start), axis.at(end)) for name, start, end in zones]
    return [(name, _percent(left), _percent(right - left)) for name, left, right in ends if right > left]


def _threshold_lines(layer: LayerReport, axis: Axis) -> list[tuple[str, str, int, str]]:
    anchors = {"lower": "end", "band": "end", "upper": "start"}
    lines = []
    for name, threshold in _thresholds(layer).items():
        z = layer.distance(threshold)
        if z is None or not axis.holds(z):
            continue
        at = axis.at(z)
        anchor = "start" if at < 0.1 else "end" if at > 0.9 else anchors[name]
        lines.append((name, _percent(at), -4 if anchor == "end" else 4, anchor))
    return lines


def _left_out(found: dict[str, list[_Dot]], drawn: dict[str, list[_Dot]]) -> str:
    """A sentence on what the strip does not show."""
    names = {"plain": "untouched channels", "near": "near outliers", "low": "outliers below", "high": "outliers above"}
    parts = [
        f"{len(drawn[kind]):,} of {len(dots):,} {names[kind]}" + (" (the farthest)" if kind in ("high", "low") else "")
        for kind, dots in found.items()
        if len(drawn[kind]) < len(dots)
    ]
    return f"Shown: {', '.join(parts)}." if parts else ""


def _why_empty(layer: LayerReport) -> str:
    if not any(score is not None for score in layer.scores):
        return "No channel has a finite score, so there is nothing to draw."
    return "All finite scores are equal, so there is no spread to draw."


def _percent(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"


def _whole(z: int) -> str:
    return f"\N{MINUS SIGN}{-z}" if z < 0 else str(z)
