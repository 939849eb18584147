"""The report as one self-contained page, composed of sections that other pages can use too.

The page loads nothing and runs nothing: a content security policy forbids it, and there is no script to run (but one on
the benchmark's page, which that policy names by its digest). Tooltips
are SVG titles, folding is <details>, light and dark follow the reader's system.

`render` makes the whole page. A page of one's own is `page(title, [header(...), section(...), *report_sections(...)])`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from importlib import resources

from unbackdoor.findings import LayerReport, Report
from unbackdoor.report import strip, summary
from unbackdoor.report.escape import NOTHING, Html, html, html_short
from unbackdoor.report.figures import curve

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
NAME = 160  # the longest name shown in full
TITLE = 80  # the longest title
LISTED = 24  # channels listed in words, a layer
PATHS = 60  # paths listed, a group
OPEN_LAYERS = 8  # of the layers with outliers, how many are unfolded


def render(report: Report, *, title: str | None = None, before_sections: Html = NOTHING) -> str:
    """The whole page of one report.

    Args:
        report: what to show.
        title: of the page and of the window; by default the file's name.
        before_sections: markup to put between the header and the report's sections.
    """
    name = title or (re.split(r"[\\/]", report.source)[-1] if report.source else "") or "A model in memory"
    return page(name, [report_header(report, title=name), before_sections, *report_sections(report)])


def page(title: str, sections: Iterable[Html], *, style: str = "", script: str = "") -> str:
    """A complete page with the style, the policy and the marks that the sections need.

    Args:
        title: of the window.
        sections: markup.
        style: CSS on top of the common one.
        script: of our own; the policy lets this very text run and nothing else.
    """
    common = resources.files("unbackdoor.report").joinpath("style.css").read_text(encoding="utf-8")
    policy, runs, tail = POLICY, "runs no script", ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"{POLICY}; script-src 'sha256-{digest}'"
        runs, tail = "its only script sorts its tables", f"<script>{script}</script>\n"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="referrer" content="no-referrer">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html_short(title, NAME)} · unbackdoor</title>\n<style>\n{common}{style}</style>\n</head>\n<body>\n"
        f"{strip.SYMBOLS}\n<main>\n{_lines(sections)}\n</main>\n"
        f"<footer>Made by unbackdoor. This page loads nothing from anywhere and {runs}.</footer>\n{tail}"
        "</body>\n</html>\n"
    )


def header(title: str, *, eyebrow: str, lead: Html = NOTHING) -> Html:
    """The head of a page: a small line, the title, and what follows it."""
    return Html(
        f'<header><p class="eyebrow">{html_short(eyebrow, TITLE)}</p><h1>{html_short(title, TITLE)}</h1>{lead}</header>'
    )


def section(heading: str, body: str, *, lead: str = "", ident: str = "", level: int = 2) -> Html:
    """A section with a heading; `body` is markup, `heading` and `lead` are text."""
    anchor = f' id="{html(ident)}"' if ident else ""
    first = f'<p class="lead">{html(lead)}</p>' if lead else ""
    return Html(f"<section{anchor}><h{level}>{html(heading)}</h{level}>{first}{body}</section>")


def report_header(report: Report, *, title: str) -> Html:
    """Title, what was read and how, the headline, and the totals."""
    eyebrow = f"unbackdoor {report.action}"
    facts = {
        "Method": html_short(report.method, NAME),
        "Architecture": _code(report.arch),
        "File": _code(report.source),
        "SHA-256": _code(report.digest),
        "Written to": _code(report.output),
        "Images": html_short(summary.data(report.data), 400) if report.data else NOTHING,
    }
    lead = f'<p class="headline">{html(summary.headline(report))}</p>{_facts(facts)}'
    return header(title, eyebrow=eyebrow, lead=Html(lead))


def report_sections(report: Report, *, prefix: str = "layer", level: int = 2) -> list[Html]:
    """Every section of a report, in order.

    Args:
        report: what to show.
        prefix: of the anchors of its layers, so that two reports can share a page.
        level: of the sections' headings.
    """
    sections = [
        not_covered_section(report, level=level),
        unusual_section(report, level=level),
        totals_section(report, level=level),
        overview_section(report, prefix=prefix, level=level),
        layers_section(report, prefix=prefix, level=level),
        classifier_section(report, level=level),
        stages_section(report, level=level),
        remarks_section(report, level=level),
        method_section(report, level=level),
    ]
    return [found for found in sections if found]


def not_covered_section(report: Report, *, level: int = 2) -> Html:
    """What nothing is known of, in a box that cannot be overlooked; empty where the report is complete."""
    if report.complete:
        return NOTHING
    groups = _groups(summary.group(report.not_covered), unfolded=True)
    return Html(
        f'<section class="alarm"><h{level}><span aria-hidden="true">!</span> Incomplete</h{level}>'
        f"<p>{html(summary.not_covered(report))}</p>{groups}</section>"
    )


def unusual_section(report: Report, *, level: int = 2) -> Html:
    """That more is pruned than in any network that was measured; empty where it is not."""
    if report.unusual is None:
        return NOTHING
    return Html(
        f'<section class="alarm"><h{level}><span aria-hidden="true">!</span> Out of the ordinary</h{level}>'
        f"<p>{html(report.unusual)}</p></section>"
    )


def totals_section(report: Report, *, level: int = 2) -> Html:
    """The totals as tiles."""
    if not report.layers and report.stages:
        return NOTHING
    high = sum(len(layer.pruned_high) for layer in report.layers)
    low = sum(len(layer.pruned_low) for layer in report.layers)
    no_score = sum(len(layer.not_finite) for layer in report.layers)
    prune, scale = summary.consequence(report)
    tiles = [
        ("", len(report.layers), _many(len(report.layers), "layer", "scored"), f"{report.channels:,} channels"),
        ("high", high, _many(high, "outlier", "above"), prune),
        ("low", low, _many(low, "outlier", "below"), prune),
        ("near", report.scaled, _many(report.scaled, "near outlier"), scale),
    ]
    if no_score:
        tiles.append(("none", no_score, "without a finite score", prune))
    if report.classifier:
        weights = len(report.classifier.cut)
        tiles.append(("", weights, _many(weights, "classifier weight"), _cut_words(report)))
    body = "".join(
        f'<li class="tile">{_mark(kind)}<b>{number:,}</b><span>{html(label)}</span>'
        f'<span class="quiet">{html(detail)}</span></li>'
        for kind, number, label, detail in tiles
    )
    return Html(f'<section><h{level} class="unseen">Totals</h{level}><ul class="tiles">{body}</ul></section>')


def overview_section(report: Report, *, prefix: str = "layer", level: int = 2) -> Html:
    """All layers on one axis, one row each."""
    if not report.layers:
        return NOTHING
    axis = strip.common_axis(report.layers)
    rows = "".join(_overview_row(layer, index, axis, prefix) for index, layer in enumerate(report.layers))
    head = f'<li class="row head" aria-hidden="true"><span>layer</span>{strip.ruler(axis)}<span>found</span></li>'
    thinned = any(len(layer.scores) > strip.ROW_DOTS for layer in report.layers)
    return section(
        "Every layer at a glance",
        f'{_legend(report)}<ol class="overview">{head}{rows}</ol>',
        lead="One row a layer, one dot a channel. Left to right is z: how far a channel's score lies from the mean of "
        "its layer, in standard deviations. All rows share this axis."
        + (f" Of a row with more than {strip.ROW_DOTS} untouched channels a part is drawn." if thinned else ""),
        level=level,
    )


def layers_section(report: Report, *, prefix: str = "layer", level: int = 2) -> Html:
    """Each layer with its strip, its cuts, and its outlier channels by number."""
    if not report.layers:
        return NOTHING
    axis, budget = strip.common_axis(report.layers), strip.Budget.of(report)
    unfolded = _unfolded(report.layers)
    cards = []
    for index, layer in enumerate(report.layers):
        head = (
            f'<summary><span class="name">{_code(layer.path)}</span><span class="quiet">'
            f"{html_short(layer.kind, 30)} · {summary.count(len(layer.scores), 'channel')}</span>"
            f"{_found(layer)}</summary>"
        )
        # The anchor is inside: a link to it unfolds the layer.
        body = f'<div id="{html(prefix)}-{index}">{strip.detail(layer, axis, budget)}{_layer_words(layer)}</div>'
        cards.append(f'<details class="layer"{" open" if index in unfolded else ""}>{head}{body}</details>')
    return section(
        "Layer by layer",
        "".join(cards),
        lead="Point at a mark for its channel, score and z. Up and down means nothing: it only spreads the dots.",
        level=level,
    )


def classifier_section(report: Report, *, level: int = 2) -> Html:
    """The classifier step and its guess; empty where there was none."""
    step = report.classifier
    if step is None:
        return NOTHING
    gaps = dict(zip(step.cut, step.gaps, strict=False))
    cut = [f"{feature} ({gap:+.3g})" for feature, gap in gaps.items()]
    body = (
        f'<p class="guess">The class whose weights are largest on average is <b>class {step.guessed_class}</b>. As the '
        f"attacker's target this is {summary.A_GUESS}.</p>{strip.class_means(step.class_means, step.guessed_class)}"
        f'<p class="quiet">Mean weight of each of {len(step.class_means):,} classes'
        f" in {_code(step.path)}.</p>"
        f"<p>{len(step.cut):,} of the {summary.count(step.features, 'weight')} of that class: {_cut_words(report)}. "
        f"{_listed('Input features, with how far each weight lies above the mean of the other classes', cut)}</p>"
    )
    return section("The classifier", body, level=level)


def stages_section(report: Report, *, level: int = 2) -> Html:
    """The curves of a method that trains; empty where none did."""
    if not report.stages:
        return NOTHING
    body = "".join(
        f"<h{level + 1}>{html_short(stage.name, TITLE)}</h{level + 1}>"
        f'<p class="quiet">{html(summary.stage(stage))}</p>'
        f'<div class="curves">{curve(stage.losses, "loss")}{curve(stage.accuracies, "accuracy")}</div>'
        for stage in report.stages
    )
    lead = "Measured on the images that the method was given, as it saw them; no test image has a part in it."
    return section("Training", body, lead=lead, level=level)


def remarks_section(report: Report, *, level: int = 2) -> Html:
    """What was left alone, the norms without a layer, and the notes; empty where there is nothing to say."""
    parts = []
    if report.left_alone:
        parts.append(f"<h{level + 1}>Read, and left alone</h{level + 1}>{_groups(summary.group(report.left_alone))}")
    if report.unpaired_norms:
        group = summary.Group("", "no single layer feeds them", report.unpaired_norms)
        parts.append(f"<h{level + 1}>Norms without a layer</h{level + 1}>{_groups([group])}")
    found = summary.notes(report)
    if found:
        parts.append(f"<h{level + 1}>Notes on layers</h{level + 1}>{_groups(found)}")
    return section("What else there is to say", "".join(parts), level=level) if parts else NOTHING


def method_section(report: Report, *, level: int = 2) -> Html:
    """The settings, and how to read the page."""
    rows = "".join(
        f'<tr><th scope="row">{_code(key)}</th><td>{_code(value)}</td></tr>'
        for key, value in summary.settings(report.settings).items()
    )
    table = f'<table class="settings"><tbody>{rows}</tbody></table>' if rows else ""
    prune, scale = summary.consequence(report)
    words = {
        "score": f"{report.score}."
        if report.score
        else "how strongly a channel can react to a change of its input (its Lipschitz constant), the norm behind it "
        "folded in.",
        "z": "the score's distance from the mean of its layer, in standard deviations of that layer.",
        "outlier": f"a score beyond the lower or the upper cut: {prune}.",
        "near outlier": f"a score in the band below the upper cut: {scale}.",
        "cut": "a limit on the score; it comes from the settings"
        + ("." if report.score else " and from the layer's own mean and spread."),
    }
    if not report.layers and report.stages:
        return section(
            "Method",
            f"<div><h{level + 1}>Settings of {html_short(report.method, 40)}</h{level + 1}>{table}</div>",
            level=level,
        )
    terms = "".join(f"<dt>{html(term)}</dt><dd>{html(meaning)}</dd>" for term, meaning in words.items())
    sub = f"h{level + 1}"
    body = (
        f'<div class="columns"><div><{sub}>Settings of {html_short(report.method, 40)}</{sub}>{table}</div>'
        f'<div><{sub}>How to read this page</{sub}><dl class="words">{terms}</dl><p>Outliers are a reason to '
        "look, not a proof: networks without a backdoor have outliers too, and a backdoor can hide from this score. "
        f"{html(summary.NOTHING_FOUND) if not report.pruned + report.immutable else ''}</p></div></div>"
    )
    return section("Method", body, level=level)


def _unfolded(layers: Sequence[LayerReport]) -> set[int]:
    """The layers whose outliers lie farthest out; without outliers the first, to show what a strip looks like."""
    reach = {
        index: max((abs(layer.z(channel) or 0.0) for channel in layer.pruned), default=0.0)
        for index, layer in enumerate(layers)
        if layer.pruned
    }
    return set(sorted(reach, key=lambda index: (-reach[index], index))[:OPEN_LAYERS]) or {0}


def _overview_row(layer: LayerReport, index: int, axis: strip.Axis, prefix: str) -> str:
    return (
        f'<li class="row"><a class="name" href="#{html(prefix)}-{index}">{html_short(layer.path, 60)}</a>'
        f'<span class="size quiet">{len(layer.scores):,}<span class="unseen"> channels</span></span>'
        f"{strip.row(layer, axis)}{_found(layer)}</li>"
    )


def _found(layer: LayerReport) -> str:
    """The counts of a layer; a mark and a word each, so that no colour is needed."""
    counts = [
        ("high", len(layer.pruned_high), "above"),
        ("low", len(layer.pruned_low), "below"),
        ("none", len(layer.not_finite), "no score"),
        ("high", len(layer.immutable), "cannot be cut"),
        ("near", len(layer.scaled), "near"),
    ]
    said = "".join(
        f'<span class="count {kind}">{_mark(kind)}<b>{number:,}</b> {word}</span>'
        for kind, number, word in counts
        if number
    )
    return f'<span class="found">{said or "<span class=quiet>no outliers</span>"}</span>'


def _layer_words(layer: LayerReport) -> str:
    rule = summary.RULES.get(layer.rule, layer.rule)
    how = f' <span class="quiet">({html_short(rule, NAME)})</span>' if rule else ""
    cuts = [
        _whole(f"{name} {summary.number(cut)} (z {summary.signed(layer.distance(cut))})")
        for name, cut in (("lower", layer.lower), ("band", layer.band), ("upper", layer.upper))
        if cut is not None
    ]
    facts = {
        "Norm folded in": Html((_code(layer.norm) if layer.norm else "none") + how),
        "Mean, std of the scores": Html(f"{summary.number(layer.mean)}, {summary.number(layer.std, digits=3)}"),
        "Largest z": Html(summary.signed(summary.top_z(layer))),
        "Cuts": Html(" · ".join(cuts) or "none"),
    }
    lists = [
        _listed("Outliers above (z)", _with_z(layer, layer.pruned_high), kind="high"),
        _listed("Outliers below (z)", _with_z(layer, layer.pruned_low), kind="low"),
        _listed("Outliers that cannot be cut (z)", _with_z(layer, layer.immutable), kind="high"),
        _listed("Near outliers (z)", _with_z(layer, layer.scaled), kind="near"),
        _listed("Without a finite score (NaN or infinite)", [str(c) for c in layer.not_finite], kind="none"),
    ]
    notes = "".join(f'<p class="note">{html_short(note, 600)}</p>' for note in layer.notes)
    return f"{_facts(facts)}{''.join(f'<p>{found}</p>' for found in lists if found)}{notes}"


def _with_z(layer: LayerReport, channels: Sequence[int]) -> list[str]:
    return [f"{channel} ({summary.signed(layer.z(channel))})" for channel in summary.strongest(layer, channels)]


def _listed(label: str, items: Sequence[str], *, kind: str = "") -> str:
    if not items:
        return ""
    more = f" and {len(items) - LISTED:,} more" if len(items) > LISTED else ""
    shown = ", ".join(_whole(item) for item in items[:LISTED])
    return f'<span class="listed">{_mark(kind)}<b>{html(label)}</b> <span class="numbers">{shown}{more}</span></span>'


def _whole(text: str) -> Html:
    """A text that is not broken across lines."""
    return Html(html(text).replace(" ", "&nbsp;"))


def _many(number: int, noun: str, more: str = "") -> str:
    return f"{noun}{'' if number == 1 else 's'} {more}".strip()


def _cut_words(report: Report) -> str:
    return "set to zero" if report.changed else "a repair zeroes them"


def _legend(report: Report) -> str:
    prune, scale = summary.consequence(report)
    entries = [
        ("dot", "untouched"),
        ("high", f"outlier above the upper cut ({prune})"),
        ("low", f"outlier below the lower cut ({prune})"),
        ("near", f"near outlier ({scale})"),
    ]
    shown = "".join(f"<li>{_mark(kind)} {html(words)}</li>" for kind, words in entries)
    zones = '<li><i class="swatch zone-band"></i> band</li><li><i class="swatch zone-out"></i> beyond a cut</li>'
    return f'<ul class="legend">{shown}{zones}</ul>'


def _mark(kind: str) -> str:
    if kind == "none":
        return '<span class="mark none" aria-hidden="true">&#215;</span>'
    if not kind:
        return ""
    return (
        f'<svg class="mark {kind}" width="14" height="14" aria-hidden="true" focusable="false">'
        f'<use href="#m-{kind}" x="7" y="7"/></svg>'
    )


def _facts(facts: dict[str, Html]) -> Html:
    return Html(
        '<dl class="facts">'
        + "".join(f"<div><dt>{html(label)}</dt><dd>{value}</dd></div>" for label, value in facts.items() if value)
        + "</dl>"
    )


def _groups(groups: Sequence[summary.Group], *, unfolded: bool = False) -> Html:
    items = "".join(_group(group, unfolded=unfolded) for group in groups[:PATHS])
    return Html(f'<ul class="groups">{items}{_rest(len(groups))}</ul>')


def _group(group: summary.Group, *, unfolded: bool) -> str:
    kind = f"{html_short(group.kind, 40)} " if group.kind else ""
    paths = ", ".join(_code(path) for path in group.paths[:PATHS])
    if len(group.paths) > PATHS:
        paths += f" and {len(group.paths) - PATHS:,} more"
    reason = html_short(group.reason, 600)
    if len(group.paths) <= 3:
        return f"<li>{reason} <span class=quiet>{kind}{paths}</span></li>"
    counted = f"{len(group.paths):,} {kind}".strip()
    head = f"<summary>{reason} <span class=quiet>({counted})</span></summary>"
    return f"<li><details{' open' if unfolded else ''}>{head}<p>{paths}</p></details></li>"


def _rest(groups: int) -> str:
    return f"<li>and {groups - PATHS:,} more reasons; the JSON report holds all</li>" if groups > PATHS else ""


def _code(name: str | None) -> Html:
    return Html(f"<code>{html_short(name, NAME)}</code>") if name else NOTHING


def _lines(sections: Iterable[Html]) -> str:
    return "\n".join(found for found in sections if found)
