"""Figures as SVG, drawn with matplotlib in placeholder colours that a page replaces by those of its reader's theme."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from unbackdoor.errors import MethodError
from unbackdoor.leaderboard.claims import NONE, Claim
from unbackdoor.leaderboard.tables import Line, Sheet, Table, has_settings, method_title, split_method
from unbackdoor.report.escape import short

#: Placeholder -> the page's variable, which is dark or light as its reader wishes.
THEME = {"#1d1f24": "--ink", "#5c616b": "--soft", "#dedcd4": "--line", "#ffffff": "--card"}
INK, SOFT, LINE, CARD = THEME
#: Readable on light and on dark: accuracy, attack success, and the accents of the drawings.
ACC, ASR, YELLOW, PURPLE = "#2f7fd6", "#dd5a22", "#c08a00", "#9a5bd0"
MARKS = "os^Dv<>PX*hd"
WIDTH = 4.6  # inches: about a phone's
SIZES = (8.0, 9.0)  # points, of small and of usual text


@dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
        name: for a file.
        title, caption: for a reader; the caption says what was measured and how.
        svg: a whole SVG element in the theme's light colours.
    """

    name: str
    title: str
    caption: str
    svg: str

    @property
    def themed(self) -> str:
        """The same in the colours of the page that it is put into."""
        text = self.svg
        for colour, variable in THEME.items():
            text = text.replace(colour, f"var({variable})")
        return text


def figures(sheet: Sheet) -> Iterator[Figure]:
    """Every figure that a grid's claims give rise to."""
    grid = sheet.grid
    for number, table in enumerate(sheet.tables, start=1):
        name = f"{grid.name}-{number}"
        points = _trade(table)
        if len(points) > 1:
            yield _pareto(table, points, f"{name}-pareto")
        if len(table.attacks) and len(table.lines) > 2:
            found = _heat(table, f"{name}-heat")
            if found is not None:
                yield found
    for number, table in enumerate(sheet.variants, start=1):
        yield from _sweeps(table, f"{grid.name}-{number}")
    related = [c for c in grid.own if c.correlation is not None]
    for number, claim in enumerate(related, start=1):
        yield _correlation(claim, f"{grid.name}-correlation-{number}")
    scored = next((c for c in grid.own if c.layers and split_method(c.method)[:2] == ("lpp", "")), None)
    if scored is not None:
        drawn = _distribution(scored, f"{grid.name}-distribution")
        if drawn is not None:
            yield drawn
        yield _dot_product(f"{grid.name}-dot-product")


# Tables


def _trade(table: Table) -> list[tuple[Line, float, float]]:
    """Method, accuracy lost in points, ASR left: means over the established attacks."""
    base = next((line for line in table.lines if line.method == NONE), None)
    before = None if base is None else table.average(base)
    if before is None:
        return []
    found = []
    for line in table.lines:
        after = table.average(line)
        if line.method != NONE and after is not None:
            found.append((line, before[0] - after[0], after[1]))
    return found


def front(points: Sequence[tuple[Line, float, float]]) -> list[tuple[Line, float, float]]:
    """Those that no other beats in both: less accuracy lost and less ASR left."""
    kept = [
        p for p in points if not any((q[1] <= p[1] and q[2] <= p[2]) and (q[1] < p[1] or q[2] < p[2]) for q in points)
    ]
    return sorted(kept, key=lambda p: p[1])


def _pareto(table: Table, points: list[tuple[Line, float, float]], name: str) -> Figure:
    figure, axes = new_axes(height=4.4)
    edge = front(points)
    axes.plot([p[1] for p in edge], [p[2] for p in edge], color=SOFT, lw=1, ls=":", zorder=1, drawstyle="steps-post")
    for mark, (line, lost, left) in zip(MARKS * len(points), points, strict=False):
        axes.scatter([lost], [left], marker=mark, s=38, color=ACC if line in [p[0] for p in edge] else SOFT, zorder=3)
    axes.set_xlabel("accuracy lost, points")
    axes.set_ylabel("attack success left, %")
    if max(p[1] for p in points) > 25:  # one method far out would push all others together
        axes.set_xscale("symlog", linthresh=5, linscale=1.5)
        ticks = [t for t in (-5, 0, 1, 2, 3, 4, 5, 10, 20, 50, 100) if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("accuracy lost, points (logarithmic beyond 5)")
    axes.set_ylim(min(-4.0, axes.get_ylim()[0]), max(axes.get_ylim()[1], 20.0))
    _labels(axes, points)
    return finished(
        figure,
        name,
        f"Accuracy lost and attack success left: {table.title}",
        f"Means over {_attacks(table)}, on the seeds that all methods share. Lower left is better. The dotted line "
        "joins the methods that no other beats in both (blue).",
    )


def _labels(axes: Any, points: Sequence[tuple[Line, float, float]]) -> None:
    """Names beside their points, moved up where they would cover one another or a point."""
    forth, back = axes.transAxes.inverted(), axes.transAxes
    places = [tuple(forth.transform(axes.transData.transform(p[1:]))) for p in points]
    taken = [(x, x + 0.02, y) for x, y in places]
    for (line, _, _), (x, y) in sorted(zip(points, places, strict=True), key=lambda found: found[1][::-1]):
        name = _plain(line.title)
        left, right = x + 0.03, x + 0.05 + 0.016 * len(name)
        at = y
        while any(left < b and a < right and abs(at - c) < 0.045 for a, b, c in taken):
            at += 0.005
        taken.append((left, right, at))
        if at - y > 0.02:
            axes.plot([x, left], [y, at], color=LINE, lw=0.8, zorder=2, transform=back)
        axes.text(left, at, name, fontsize=SIZES[0], color=INK, va="center", zorder=4, transform=back)


def _heat(table: Table, name: str) -> Figure | None:
    columns = table.attacks
    lines = [line for line in table.lines if line.method != NONE]
    values = [[_der(table, line, column) for column in columns] for line in lines]
    if not any(value is not None for row in values for value in row):
        return None
    figure, axes = new_axes(height=0.9 + 0.27 * len(lines), grid=False)
    import matplotlib

    colours = matplotlib.colormaps["RdYlGn"]
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            shade = CARD if value is None else colours(0.08 + 0.84 * value)
            axes.fill([x, x + 1, x + 1, x], [y, y, y + 1, y + 1], color=shade, lw=0)
            text = "not run" if value is None else f"{100 * value:.1f}"
            axes.text(
                x + 0.5,
                y + 0.52,
                text,
                ha="center",
                va="center",
                fontsize=SIZES[0],
                color=SOFT if value is None else "#111111",
            )
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(lines), 0)
    axes.set_xticks([x + 0.5 for x in range(len(columns))], [_wrapped(c.title) for c in columns])
    axes.set_yticks([y + 0.5 for y in range(len(lines))], [_plain(line.title) for line in lines])
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    for spine in axes.spines.values():
        spine.set_visible(False)
    return finished(
        figure,
        name,
        f"Defence effectiveness rating (DER): {table.title}",
        "DER in percent: 50, plus half of the ASR removed, minus half of the accuracy lost. 50 changes nothing. 100 is "
        "a full repair at no cost in accuracy.",
    )


def _der(table: Table, line: Line, column: Any) -> float | None:
    entry = table.entries.get((line, column))
    return None if entry is None or entry.der is None else entry.der.value


# Figures 4 and 5: sweeps


def _sweeps(table: Table, name: str) -> Iterator[Figure]:
    swept: dict[tuple[str, str], dict[float, Line]] = {}
    for line in table.lines:
        method, _, settings = split_method(line.method)
        key, _, value = settings.partition("=")
        if not has_settings(line.method) or "," in settings:
            continue
        try:
            at = float(value)
        except ValueError:
            continue
        if math.isfinite(at):
            swept.setdefault((method, key), {})[at] = line
    for (method, key), lines in swept.items():
        if len(lines) > 3:
            yield _sweep(table, method, key, dict(sorted(lines.items())), f"{name}-{method}-{key}")


def _sweep(table: Table, method: str, key: str, lines: dict[float, Line], name: str) -> Figure:
    figure, axes = new_axes(height=2.9)
    # In every column its own shape of line, as colours already tell ACC from ASR.
    styles = ("-", "--", ":", "-.")
    for style, column in zip(styles * len(table.columns), table.columns, strict=False):
        for what, colour in (("acc", ACC), ("asr", ASR)):
            found = [(x, _value(table, line, column, what)) for x, line in lines.items()]
            known = [(x, y) for x, y in found if y is not None]
            if known:
                axes.plot(
                    *zip(*known, strict=True),
                    ls=style,
                    color=colour,
                    lw=1.6,
                    marker="o",
                    ms=2.6,
                    label=_plain(f"{what.upper()}, {column.title}"),
                )
    axes.set_xlabel({"lower": "lower threshold (u1)", "upper": "upper threshold (u2)"}.get(key, _plain(key)))
    axes.set_ylabel("%")
    axes.set_ylim(-3, 103)
    axes.legend(fontsize=SIZES[0], frameon=False, labelcolor=INK, loc="best")
    figured = {("lpp", "lower"): "Figure 4: ", ("lpp", "upper"): "Figure 5: "}.get((method, key), "")
    return finished(
        figure,
        name,
        f"{figured}{method_title(method)} over {key}: {table.title}",
        "A sweep on the test set. No default was chosen from it. All other settings are the method's defaults.",
    )


def _value(table: Table, line: Line, column: Any, what: str) -> float | None:
    entry = table.entries.get((line, column))
    mean = None if entry is None else getattr(entry, what)
    return None if mean is None else float(mean.value)


# Figure 3


def _correlation(claim: Claim, name: str) -> Figure:
    figure, axes = new_axes(height=2.9)
    found = claim.correlation or {}
    bins = [x / 20 for x in range(-20, 21)]
    medians = []
    for what, colour in (("pearson", ACC), ("spearman", ASR)):
        per_image = [v for row in found[what]["per_image"] for v in row if v is not None]
        per_layer = [v for v in found[what]["per_layer"] if v is not None]
        axes.hist(per_image, bins=bins, color=colour, alpha=0.45, label=f"{what.title()}, per image and layer")
        level = -0.035 * axes.get_ylim()[1] if what == "pearson" else -0.09 * axes.get_ylim()[1]
        axes.plot(per_layer, [level] * len(per_layer), "|", color=colour, ms=8, mew=1.2)
        if per_image:
            middle = sorted(per_image)[len(per_image) // 2]
            medians.append(f"{what.title()}'s median is {middle:+.2f}")
    axes.axvline(0, color=SOFT, lw=0.8)
    axes.set_xlim(-1, 1)
    axes.set_xlabel("coefficient over a layer's channels")
    axes.set_ylabel("images x layers")
    axes.legend(fontsize=SIZES[0], frameon=False, labelcolor=INK, loc="upper left")
    names = claim.names
    network = f"{names.get('data', claim.data)}, {names.get('arch', claim.arch)}, {names.get('attack', claim.attack)}"
    return finished(
        figure,
        name,
        f"Figure 3: correlation of trigger-activated change and Lipschitz constants: {network}",
        f"{found.get('images', 0)} test images with and without the trigger, {len(found.get('layers', []))} "
        f"convolutions, seed {claim.seed}. The ticks below show one coefficient per layer, for the mean change over "
        f"the images. {'; '.join(medians)}.",
    )


# Figures 1 and 2: the drawings


def _distribution(claim: Claim, name: str) -> Figure | None:
    """Figure 1's idea on real scores: the layer with the farthest outlier."""
    layers = [x for x in claim.layers or [] if x.get("std") and x.get("upper") is not None and x.get("pruned_high")]
    if not layers:
        return None

    def z(layer: dict[str, Any], score: float) -> float:
        return float((score - layer["mean"]) / layer["std"])

    layer = max(layers, key=lambda x: max(z(x, x["scores"][c]) for c in x["pruned_high"]))
    scores = [z(layer, s) for s in layer["scores"] if s is not None]
    upper, band = z(layer, layer["upper"]), None if layer.get("band") is None else z(layer, layer["band"])
    figure, axes = new_axes(height=2.9)
    count, edges, bars = axes.hist(scores, bins=40, color=SOFT, alpha=0.75)
    top = max(count)
    for left, bar in zip(edges, bars, strict=False):
        middle = left + (edges[1] - edges[0]) / 2
        if middle > upper:
            bar.set_color(PURPLE)
        elif band is not None and middle > band:
            bar.set_color(YELLOW)
    axes.set_ylim(0, 1.25 * top)
    axes.axvline(upper, color=PURPLE, lw=1.2)
    words = {"textcoords": "offset points", "fontsize": SIZES[0], "va": "top"}
    axes.annotate("pruned (Eq. 7)", (upper, 1.22 * top), (4, 0), color=PURPLE, **words)
    for channel in layer["pruned_high"]:
        at = z(layer, layer["scores"][channel])
        axes.annotate("", (at, 0.02 * top), (at, 0.28 * top), arrowprops={"arrowstyle": "->", "color": PURPLE})
    if band is not None:
        axes.axvline(band, color=YELLOW, lw=1.2, ls="--")
        axes.annotate(
            "", (band, 0.62 * top), (upper, 0.62 * top), arrowprops={"arrowstyle": "->", "color": YELLOW, "lw": 1.4}
        )
        axes.annotate("shrunk (Eqs. 8, 9)", (band, 1.22 * top), (-4, 0), color=YELLOW, ha="right", **words)
    axes.set_xlabel("Lipschitz constant, in standard deviations from the layer's mean")
    axes.set_ylabel("channels")
    attack = claim.names.get("attack", claim.attack)
    return finished(
        figure,
        name,
        f"Figure 1: what LPP does to a layer ({layer['path']})",
        f"Real scores of {attack}, {claim.names.get('arch', claim.arch)}, seed {claim.seed}: the layer with the "
        "farthest outlier. Purple: outliers, pruned. Yellow: near outliers, shrunk to the band's lower edge.",
    )


def _dot_product(name: str) -> Figure:
    """Figure 2's idea: a channel is one dot product, so that its steepest slope is its filter's length."""
    figure, axes = new_axes(height=2.7, grid=False)
    axes.set_axis_off()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 5.4)
    origin, w, x = (0.7, 0.8), (4.6, 2.0), (2.6, 4.2)
    for tip, colour, text, across in ((w, PURPLE, "$W_j$", -0.5), (x, ACC, "$x$", 0.12)):
        axes.annotate("", tip, origin, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
        axes.text(tip[0] + across, tip[1] + 0.2, text, color=colour, fontsize=12)
    unit = math.hypot(w[0] - origin[0], w[1] - origin[1])
    along = ((x[0] - origin[0]) * (w[0] - origin[0]) + (x[1] - origin[1]) * (w[1] - origin[1])) / unit**2
    foot = (origin[0] + along * (w[0] - origin[0]), origin[1] + along * (w[1] - origin[1]))
    axes.plot([x[0], foot[0]], [x[1], foot[1]], color=SOFT, ls=":", lw=1.2)
    axes.text(1.55, 1.4, r"$\theta$", color=INK, fontsize=11)
    axes.text(0.2, 5.1, r"$f_j(x)=\langle W_j,x\rangle=|W_j|\,|x|\cos\theta$", color=INK, fontsize=10, va="center")
    for row, (length, colour, note) in enumerate(
        ((1.1, SOFT, "kept"), (1.3, SOFT, "kept"), (0.9, SOFT, "kept"), (3.1, PURPLE, "pruned"), (1.2, SOFT, "kept"))
    ):
        y = 4.1 - 0.75 * row
        axes.fill([6, 6 + length, 6 + length, 6], [y, y, y + 0.42, y + 0.42], color=colour, alpha=0.85, lw=0)
        axes.text(5.85, y + 0.2, f"$|W_{row + 1}|$", color=INK, fontsize=SIZES[1], ha="right", va="center")
        axes.text(6.12 + length, y + 0.2, note, color=colour, fontsize=SIZES[0], va="center")
    return finished(
        figure,
        name,
        "Figure 2: a channel is one dot product",
        "A drawing, not a measurement. A channel's filter is one vector over k x k x c inputs. For any x, the output "
        "changes by at most the filter's length per unit of input. So the length ranks channels without data.",
    )


# Frame


def new_axes(*, height: float, grid: bool = True) -> tuple[Any, Any]:
    """A figure and its axes in the page's colours.

    Raises:
        MethodError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise MethodError("figures need matplotlib: pip install 'unbackdoor[bench]'") from error
    figure = Canvas(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(SOFT)
    axes.tick_params(colors=SOFT, labelcolor=INK, labelsize=SIZES[0])
    axes.xaxis.label.set(color=INK, fontsize=SIZES[1])
    axes.yaxis.label.set(color=INK, fontsize=SIZES[1])
    if grid:
        axes.grid(color=LINE, lw=0.7)
        axes.set_axisbelow(True)
    return figure, axes


def finished(figure: Any, name: str, title: str, caption: str) -> Figure:
    """A figure as SVG: the same one has the same bytes."""
    import matplotlib

    figure.get_layout_engine().execute(figure)  # once: saving would do it twice
    figure.set_layout_engine("none")
    stream = io.StringIO()
    # Words stay words; the same figure has the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return Figure(name, title, caption, text)


def _plain(text: str) -> str:
    """Nothing in it is mathematics, and it is short."""
    return short(text, 40).replace("$", r"\$")


def _wrapped(text: str) -> str:
    return _plain(text).replace(" (", "\n(")


def _attacks(table: Table) -> str:
    return ", ".join(column.title for column in table.established)
