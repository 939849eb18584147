"""One layer's channel scores as a strip of dots, in SVG.

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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from unbackdoor.findings import LayerReport, Report
from unbackdoor.report import summary
from unbackdoor.report.escape import NOTHING, Html, html, html_short

FARTHEST_LOW, FARTHEST_HIGH = -8.0, 12.0
UNITS = 2000  # of the dots' own x coordinate
TOP, PLOT, BOTTOM = 18, 84, 22  # pixels: words on the cuts, dots, axis
ROW = 26
ROW_DOTS, ROW_MARKS = 100, 20

SYMBOLS = Html(
    '<svg class="symbols" width="0" height="0" aria-hidden="true" focusable="false"><defs>'
    '<path id="m-high" d="M-4.5-5.5 6 0-4.5 5.5z"/><path id="m-low" d="M4.5-5.5-6 0 4.5 5.5z"/>'
    '<path id="m-near" d="M0-5 5 0 0 5-5 0z"/><circle id="m-dot" r="2"/></defs></svg>'
)
"""The marks: needed once in a page that holds strips."""


@dataclass(frozen=True)
class Axis:
    """The common z axis, from `low` to `high`."""

    low: float
    high: float

    def at(self, z: float) -> float:
        """Where z lies, from 0 to 1; what is off the axis lies at its end."""
        return min(max((z - self.low) / (self.high - self.low), 0.0), 1.0)

    def holds(self, z: float) -> bool:
        """Whether z lies on the axis."""
        return self.low <= z <= self.high

    @property
    def ticks(self) -> tuple[int, ...]:
        """Whole numbers, few enough for a phone."""
        step = 1 if self.high - self.low <= 9 else 2 if self.high - self.low <= 18 else 4
        return tuple(range(math.ceil(self.low / step) * step, math.floor(self.high) + 1, step))


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


def common_axis(layers: Iterable[LayerReport]) -> Axis:
    """An axis that holds every cut and score, as far as -8 and +12."""
    low, high = -4.0, 4.0
    for layer in layers:
        finite = [score for score in layer.scores if score is not None]
        ends = [layer.distance(x) for x in (*((min(finite), max(finite)) if finite else ()), *_cuts(layer).values())]
        low = min([low, *(math.floor(z) for z in ends if z is not None)])
        high = max([high, *(math.ceil(z) for z in ends if z is not None)])
    return Axis(max(low, FARTHEST_LOW), min(high, FARTHEST_HIGH))


def detail(layer: LayerReport, axis: Axis, budget: Budget) -> Html:
    """The full strip of one layer, with its cuts, its axis and a sentence on whatever is not drawn."""
    found = _by_kind(layer)
    if not found:
        return Html(f'<p class="quiet">{html(_why_empty(layer))}</p>')
    drawn = {kind: _few(kind, dots, budget.dots if kind == "plain" else budget.marks) for kind, dots in found.items()}
    crowd = _Crowd(layer)
    tooltips, marks = budget.tooltips, []
    for kind in ("high", "low", "near"):  # outliers get their tooltips first
        marks.append(_marks(kind, drawn[kind], axis, layer, crowd, top=TOP, height=PLOT, tooltips=tooltips))
        tooltips = max(tooltips - len(drawn[kind]), 0)
    dots = _dots(drawn["plain"], axis, crowd, top=TOP, height=PLOT)
    every = sorted(dot.z for dots in found.values() for dot in dots)
    label = (
        f"{len(every):,} channel scores of {html_short(layer.path, 80)}: {len(found['high']):,} outliers above, "
        f"{len(found['low']):,} below, {len(found['near']):,} near outliers; z from {every[0]:+.1f} to {every[-1]:+.1f}"
    )
    picture = (
        f'<svg class="strip" width="100%" height="{TOP + PLOT + BOTTOM}" role="img" aria-label="{label}">'
        f"{_zones(layer, axis, top=TOP, height=PLOT)}{_cut_lines(layer, axis)}{dots}{''.join(reversed(marks))}"
        f"{_off_axis(every, axis)}{_axis(axis)}</svg>"
    )
    return Html(picture + _left_out(found, drawn))


def row(layer: LayerReport, axis: Axis) -> Html:
    """A strip of one line for the overview; whatever it shows is said in words beside it."""
    found = _by_kind(layer)
    if not found:
        return Html('<span class="quiet">no spread to show</span>')
    drawn = {kind: _few(kind, dots, ROW_DOTS if kind == "plain" else ROW_MARKS) for kind, dots in found.items()}
    crowd = _Crowd(layer)
    marks = "".join(
        _marks(kind, drawn[kind], axis, layer, crowd, top=3, height=ROW - 6, tooltips=0)
        for kind in ("near", "low", "high")
    )
    return Html(
        f'<svg class="strip" width="100%" height="{ROW}" aria-hidden="true" focusable="false">'
        f"{_zones(layer, axis, top=0, height=ROW)}"
        f"{_dots(drawn['plain'], axis, crowd, top=3, height=ROW - 6)}{marks}</svg>"
    )


def ruler(axis: Axis) -> Html:
    """The axis alone, for the head of the overview."""
    ticks = "".join(f'<text x="{_percent(axis.at(z))}" y="11">{_whole(z)}</text>' for z in axis.ticks)
    return Html(
        f'<svg class="strip axis" width="100%" height="15" role="img" aria-label="axis: z from {axis.low:+g} to '
        f'{axis.high:+g}">{ticks}</svg>'
    )


def class_means(means: Sequence[float | None], guess: int) -> Html:
    """The classes' mean weights on an axis of their own, the guessed class marked."""
    finite = [(mean, index) for index, mean in enumerate(means) if mean is not None]
    if len(finite) < 2 or min(finite)[0] == max(finite)[0]:
        return NOTHING
    least, most = min(finite)[0], max(finite)[0]

    def at(mean: float) -> float:
        return 0.04 + 0.92 * (mean - least) / (most - least)

    dots: list[str] = []
    chosen = ""
    for mean, index in finite:
        title = f"<title>class {index}: mean weight {summary.number(mean)}</title>"
        use = f'<use href="#m-{{}}" x="{_percent(at(mean))}" y="28">{title}</use>'
        if index == guess:
            place = _percent(at(mean))
            anchor = "end" if at(mean) > 0.8 else "start" if at(mean) < 0.2 else "middle"
            chosen = f'<g class="high">{use.format("high")}</g>'
            chosen += f'<text class="word" x="{place}" y="12" text-anchor="{anchor}">class {index}</text>'
        elif len(dots) < 2_000:
            dots.append(use.format("dot"))
    ends = (
        f'<text x="4%" y="54" text-anchor="start">{summary.number(least, digits=3)}</text>'
        f'<text x="96%" y="54" text-anchor="end">{summary.number(most, digits=3)}</text>'
    )
    return Html(
        f'<svg class="strip" width="100%" height="60" role="img" aria-label="mean weight of {len(means):,} classes; '
        f'the largest is that of class {guess}"><line class="base" x1="0" x2="100%" y1="39" y2="39"/>'
        f'<g class="dots-one">{"".join(dots)}</g>{chosen}{ends}</svg>'
    )


class _Dot(NamedTuple):
    z: float
    channel: int


class _Crowd:
    """How crowded each place of a layer's strip is, and from that how far its dots spread up and down."""

    WIDTH = 0.2

    def __init__(self, layer: LayerReport) -> None:
        bins = Counter(self._bin(z) for score in layer.scores if (z := layer.distance(score)) is not None)
        self._smooth = {key: bins[key - 1] + 2 * size + bins[key + 1] for key, size in bins.items()}
        self._most = max(self._smooth.values())

    def places(self, dots: Sequence[_Dot]) -> list[float]:
        """Each dot's place across the strip, from 0 to 1."""
        # The golden ratio's multiples fill the strip evenly and always in the same way; crowded places get more of it.
        shares = ((rank * 0.6180339887498949) % 1.0 - 0.5 for rank in range(1, len(dots) + 1))
        return [0.5 + 0.92 * share * self._spread(dot) for share, dot in zip(shares, dots, strict=True)]

    def _spread(self, dot: _Dot) -> float:
        return 0.25 + 0.75 * math.sqrt(self._smooth[self._bin(dot.z)] / self._most)

    def _bin(self, z: float) -> int:
        return math.floor(max(-1e9, min(1e9, z)) / self.WIDTH)  # beyond that all are one


def _by_kind(layer: LayerReport) -> dict[str, list[_Dot]]:
    """Every channel that has a z, by rising z: outliers above and below, near outliers, and the plain rest."""
    kinds = dict.fromkeys(layer.scaled, "near") | dict.fromkeys(layer.pruned_low, "low")
    kinds |= dict.fromkeys(layer.pruned_high, "high")
    found: dict[str, list[_Dot]] = {"plain": [], "near": [], "low": [], "high": []}
    for channel, score in enumerate(layer.scores):
        z = layer.distance(score)
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


def _dots(dots: Sequence[_Dot], axis: Axis, crowd: _Crowd, *, top: int, height: int) -> str:
    # One path of dots (lines of no length with round ends) takes a fifth of the bytes of as many circles. It has its
    # own stretched coordinates; non-scaling-stroke (in the style sheet) keeps the dots round.
    d = "".join(
        f"M{round(axis.at(dot.z) * UNITS)} {round(y * height)}h0"
        for dot, y in zip(dots, crowd.places(dots), strict=True)
    )
    return (
        f'<svg y="{top}" width="100%" height="{height}" viewBox="0 0 {UNITS} {height}" preserveAspectRatio="none">'
        f'<path class="dots" d="{d}"/></svg>'
        if d
        else ""
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
) -> str:
    if not dots:
        return ""
    what = {"high": "outlier above", "low": "outlier below", "near": "near outlier"}[kind]
    factors = dict(zip(layer.scaled, layer.factors, strict=False)) if tooltips else {}
    told = {dot.channel for dot in sorted(dots, key=lambda dot: -abs(dot.z))[:tooltips]}
    uses = []
    for dot, y in zip(dots, crowd.places(dots), strict=True):
        use = f'<use href="#m-{kind}" x="{_percent(axis.at(dot.z))}" y="{top + round(y * height)}"'
        if dot.channel in told:
            score = summary.number(layer.scores[dot.channel])
            factor = f", factor {factors[dot.channel]:.3g}" if dot.channel in factors else ""
            title = f"channel {dot.channel}: score {score}, z {summary.signed(dot.z)}, {what}{factor}"
            uses.append(f"{use}><title>{title}</title></use>")
        else:
            uses.append(f"{use}/>")
    return f'<g class="{kind}">{"".join(uses)}</g>'


def _cuts(layer: LayerReport) -> dict[str, float]:
    cuts = {"lower": layer.lower, "band": layer.band, "upper": layer.upper}
    return {name: cut for name, cut in cuts.items() if cut is not None}


def _zones(layer: LayerReport, axis: Axis, *, top: int, height: int) -> str:
    """What lies beyond the cuts is tinted, and so is the band."""
    z = {name: layer.distance(cut) for name, cut in _cuts(layer).items()}
    lower, band, upper = z.get("lower"), z.get("band"), z.get("upper")
    zones = []
    if lower is not None:
        zones.append(("zone-out", axis.low, lower))
    if upper is not None:
        zones.append(("zone-out", upper, axis.high))
    if band is not None:
        zones.append(("zone-band", band, axis.high if upper is None else upper))
    parts = []
    for name, start, end in zones:
        left, right = axis.at(start), axis.at(end)
        if right > left:
            place = f'x="{_percent(left)}" width="{_percent(right - left)}"'
            parts.append(f'<rect class="{name}" {place} y="{top}" height="{height}"/>')
    return "".join(parts)


def _cut_lines(layer: LayerReport, axis: Axis) -> str:
    anchors = {"lower": "end", "band": "end", "upper": "start"}
    parts = []
    for name, cut in _cuts(layer).items():
        z = layer.distance(cut)
        if z is None or not axis.holds(z):
            continue
        place = _percent(axis.at(z))
        anchor = "start" if axis.at(z) < 0.1 else "end" if axis.at(z) > 0.9 else anchors[name]
        parts.append(
            f'<line class="cut {name}" x1="{place}" x2="{place}" y1="2" y2="{TOP + PLOT}"/>'
            f'<text class="word" x="{place}" y="12" dx="{-4 if anchor == "end" else 4}" text-anchor="{anchor}">'
            f"{name}</text>"
        )
    return "".join(parts)


def _axis(axis: Axis) -> str:
    base = TOP + PLOT
    ticks = "".join(
        f'<line class="tick" x1="{place}" x2="{place}" y1="{base}" y2="{base + 4}"/>'
        f'<text x="{place}" y="{base + 16}">{_whole(z)}</text>'
        for z in axis.ticks
        for place in [_percent(axis.at(z))]
    )
    return f'<g class="axis"><line class="base" x1="0" x2="100%" y1="{base}" y2="{base}"/>{ticks}</g>'


def _off_axis(off: Sequence[float], axis: Axis) -> str:
    parts = []
    above, below = [z for z in off if z > axis.high], [z for z in off if z < axis.low]
    if above:
        words = f"{len(above):,} beyond, to {max(above):+.1f} &#8594;"
        parts.append(f'<text class="word off" x="100%" y="{TOP + 11}" text-anchor="end">{words}</text>')
    if below:
        words = f"&#8592; {len(below):,} beyond, to {min(below):+.1f}"
        parts.append(f'<text class="word off" x="0" y="{TOP + 11}">{words}</text>')
    return "".join(parts)


def _left_out(found: dict[str, list[_Dot]], drawn: dict[str, list[_Dot]]) -> str:
    """What the strip does not show must be said."""
    names = {"plain": "untouched channels", "near": "near outliers", "low": "outliers below", "high": "outliers above"}
    parts = [
        f"{len(drawn[kind]):,} of {len(dots):,} {names[kind]}" + (" (the farthest)" if kind in ("high", "low") else "")
        for kind, dots in found.items()
        if len(drawn[kind]) < len(dots)
    ]
    return f'<p class="quiet">Drawn: {", ".join(parts)}.</p>' if parts else ""


def _why_empty(layer: LayerReport) -> str:
    if not any(score is not None for score in layer.scores):
        return "No channel has a finite score, so there is nothing to draw."
    return "All finite scores are equal, so there is no spread to draw."


def _percent(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"


def _whole(z: int) -> str:
    return f"\N{MINUS SIGN}{-z}" if z < 0 else str(z)
