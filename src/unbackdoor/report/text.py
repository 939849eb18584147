"""The report for a terminal or a log: 100 columns of plain characters, no colour."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence

from unbackdoor.findings import ClassifierReport, LayerReport, Report
from unbackdoor.report import damage, summary, witness
from unbackdoor.report.escape import short, visible, width

COLUMNS = 100
FEW_LAYERS = 12
FIRST = 4
MOST_LINES = 20
HEADINGS = ("layer", "kind", "channels", "norm", "mean", "std", "max z", "high", "low", "near")


def render(report: Report) -> str:
    """The report as text, each line within 100 columns and ending in a line feed."""
    blocks = [
        _heading(report),
        _not_covered(report),
        *_witness(report),
        [line for told in _story(report) for line in _wrap(told, first="- ", rest="  ")],
        _findings(report),
        _unusual(report),
        [line for words in damage.of_report(report) for line in _wrap(words, rest="  ")],
        [line for stage in report.stages for line in _wrap(summary.stage(stage), first="", rest="  ")],
        _table(report),
        _channels(report),
        _immutable(report),
        _not_finite(report),
        _classifier(report.classifier, changed=report.changed),
        _left_alone(report),
        _unpaired(report),
        _notes(report),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _story(report: Report) -> tuple[str, ...]:
    """What was done, but for the sentence that is the headline."""
    headline = summary.headline(report)
    return tuple(told for told in report.story if told != headline)


def _heading(report: Report) -> list[str]:
    name = short(report.source, 76) if report.source else "a model in memory"
    facts = {
        "architecture": report.arch,
        "SHA-256": report.digest,
        "written to": report.output,
        "images": summary.data(report.data) if report.data else None,
        "method": f"{report.method}  " + " ".join(f"{k}={v}" for k, v in summary.settings(report.settings).items()),
    }
    lines = [f"unbackdoor {short(report.action, 10)}: {name}"]
    for label, value in facts.items():
        if value:
            lines += _wrap(short(value, 600), first=f"  {label:<13} ")
    return lines


def _not_covered(report: Report) -> list[str]:
    if not report.not_covered:
        return []
    lines = ["!" * COLUMNS, *_wrap(f"INCOMPLETE: {summary.not_covered(report)}", first="!!  ", rest="!!  ")]
    for group in summary.group(report.not_covered):
        lines += _group(group, first="!!  ", rest="!!      ")
    return [*lines, "!" * COLUMNS]


def _findings(report: Report) -> list[str]:
    lines = _wrap(summary.headline(report))
    if not report.layers:
        return lines
    high = sum(len(layer.pruned_high) for layer in report.layers)
    low = sum(len(layer.pruned_low) for layer in report.layers)
    no_score = sum(len(layer.not_finite) for layer in report.layers)
    scored = f"{summary.count(report.channels, 'channel')} in {summary.count(len(report.layers), 'layer')}"
    parts = [
        f"{summary.count(high, 'outlier')} above and {low:,} below the {'threshold' if report.score else 'mean'}",
        summary.count(report.scaled, "near outlier"),
    ]
    if no_score:
        parts.append(f"{summary.count(no_score, 'channel')} with no finite score")
    if report.immutable:
        parts.append(f"{summary.count(report.immutable, 'outlier')} that cannot be pruned")
    done = "Outliers were pruned and near outliers shrunk." if report.changed else "Nothing was changed."
    scores = f"Scores: {report.score}. " if report.score else ""
    return lines + _wrap(f"Scored {scored}: {', '.join(parts)}. {scores}{done}")


def _witness(report: Report) -> list[list[str]]:
    if report.witness is not None:
        return witness.blocks(report.witness)
    return [_wrap(f"NOT LOOKED DEEPER: {report.no_witness}", rest="  ")] if report.no_witness else []


def _unusual(report: Report) -> list[str]:
    return _wrap(f"UNUSUAL: {report.unusual}", rest="  ") if report.unusual else []


def _table(report: Report) -> list[str]:
    if not report.layers:
        return []
    few = len(report.layers) <= FEW_LAYERS
    rows = [_row(layer) for layer in report.layers if few or layer.pruned or layer.scaled]
    rest = [layer for layer in report.layers if not (few or layer.pruned or layer.scaled)]
    if rest:
        kind = f"{len(rest):,} other layers" if len(rest) > 1 else "1 other layer"
        rows.append((kind, "", f"{sum(len(x.scores) for x in rest):,}", "", "", "", _best(rest), "0", "0", "0"))
    high, low, near = (
        sum(len(channels) for channels in column)
        for column in zip(*((x.pruned_high, x.pruned_low, x.scaled) for x in report.layers), strict=True)
    )
    total = (
        "total",
        "",
        f"{report.channels:,}",
        "",
        "",
        "",
        _best(report.layers),
        f"{high:,}",
        f"{low:,}",
        f"{near:,}",
    )
    widths = [max(width(row[i]) for row in (HEADINGS, *rows, total)) for i in range(len(HEADINGS))]
    widths[0] = min(widths[0], COLUMNS - sum(widths[1:]) - 2 * (len(widths) - 1))
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return [_line(HEADINGS, widths), rule, *(_line(row, widths) for row in rows), rule, _line(total, widths)]


def _row(layer: LayerReport) -> tuple[str, ...]:
    return (
        short(layer.path, COLUMNS),
        short(layer.kind, 12),
        f"{len(layer.scores):,}",
        f"{'yes' if layer.norm else 'no'}, {short(layer.rule, 7)}",
        summary.aligned(layer.mean),
        summary.aligned(layer.std),
        summary.signed(summary.top_z(layer)),
        *(f"{len(channels):,}" for channels in (layer.pruned_high, layer.pruned_low, layer.scaled)),
    )


def _best(layers: Iterable[LayerReport]) -> str:
    return summary.signed(max((z for z in map(summary.top_z, layers) if z is not None), default=None))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = []
    for index, (cell, room) in enumerate(zip(cells, widths, strict=True)):
        cell = short(cell, room)
        space = " " * (room - width(cell))
        padded.append(cell + space if index in (0, 1, 3) else space + cell)
    return "  ".join(padded).rstrip()


def _channels(report: Report) -> list[str]:
    """The channel numbers, to look further."""
    title = "Outlier channels (z: standard deviations from the layer's mean):"
    return _by_layer(report, title, lambda layer: _with_z(layer, (*layer.pruned_high, *layer.pruned_low)))


def _immutable(report: Report) -> list[str]:
    title = "Outlier channels that cannot be pruned (z); the notes say why:"
    return _by_layer(report, title, lambda layer: _with_z(layer, layer.immutable))


def _not_finite(report: Report) -> list[str]:
    title = "Channels with a score of NaN or infinity:"
    return _by_layer(
        report,
        title,
        lambda layer: _and_more([str(channel) for channel in layer.not_finite[: 2 * FIRST]], len(layer.not_finite)),
    )


def _by_layer(report: Report, title: str, describe: Callable[[LayerReport], str]) -> list[str]:
    """A line for each layer with something to describe, up to a limit; empty if there is none."""
    found = [(layer, words) for layer in report.layers if (words := describe(layer))]
    if not found:
        return []
    lines = [title]
    for layer, words in found[:MOST_LINES]:
        lines += _wrap(words, first=f"  {short(layer.path, 40)}: ")
    if len(found) > MOST_LINES:
        lines.append(f"  ... and {summary.count(len(found) - MOST_LINES, 'more layer')}; the JSON report has all")
    return lines


def _with_z(layer: LayerReport, channels: tuple[int, ...]) -> str:
    """The channels farthest out first, each with its z."""
    strongest = summary.strongest(layer, channels)
    return _and_more(
        [f"{channel} ({summary.signed(layer.z(channel))})" for channel in strongest[:FIRST]], len(channels)
    )


def _classifier(step: ClassifierReport | None, *, changed: bool) -> list[str]:
    if step is None:
        return []
    done = f"{'was' if len(step.cut) == 1 else 'were'} set to zero" if changed else "would be set to zero"
    return [
        f"Classifier {short(step.path, 60)}",
        *_wrap(f"guessed target class: {step.guessed_class} ({summary.A_GUESS})", first="  ", rest="  "),
        *_wrap(
            f"{len(step.cut):,} of the {summary.count(step.features, 'weight')} of that class {done}: "
            + _and_more(
                [f"{f} ({gap:+.3g})" for f, gap in zip(step.cut, step.gaps, strict=True)][:FIRST], len(step.cut)
            ),
            first="  ",
            rest="    ",
        ),
    ]


def _left_alone(report: Report) -> list[str]:
    return _groups("Read, but not pruned:", summary.group(report.left_alone))


def _unpaired(report: Report) -> list[str]:
    norms = report.unpaired_norms
    if not norms:
        return []
    shown = _and_more([short(path, 40) for path in norms[:FIRST]], len(norms))
    return _wrap(f"{summary.count(len(norms), 'norm')} of no single layer: {shown}", rest="  ")


def _notes(report: Report) -> list[str]:
    return _groups("Notes:", summary.notes(report))


def _groups(title: str, groups: Sequence[summary.Group]) -> list[str]:
    if not groups:
        return []
    lines = [title]
    for group in groups[:MOST_LINES]:
        lines += _group(group, first="  ", rest="    ")
    if len(groups) > MOST_LINES:
        lines.append(f"  ... and {summary.count(len(groups) - MOST_LINES, 'more reason')}; the JSON report has all")
    return lines


def _group(group: summary.Group, *, first: str, rest: str) -> list[str]:
    paths = _and_more([short(path, 40) for path in group.paths[:FIRST]], len(group.paths))
    kind = short(group.kind, 20)
    of = f"{len(group.paths):,} {kind}" if len(group.paths) > 1 and kind else kind
    return _wrap(f"{short(group.reason, 300)} ({f'{of}: ' if of else ''}{paths})", first=first, rest=rest)


def _and_more(shown: Sequence[str], of: int) -> str:
    more = of - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")


def _wrap(text: str, *, first: str = "", rest: str | None = None) -> list[str]:
    rest = " " * min(width(first), 20) if rest is None else rest
    # textwrap counts characters, a terminal columns: text with wide characters gets room for all of them to be wide.
    room = COLUMNS if width(text) == len(text) else COLUMNS // 2
    return textwrap.wrap(visible(text), room, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
