"""The benchmark's page: one file, readable offline, on paper and on a phone; one script, which sorts tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources

from unbackdoor.leaderboard import text
from unbackdoor.leaderboard.claims import ClaimedGrid
from unbackdoor.leaderboard.paper import METHODS
from unbackdoor.leaderboard.plots import Figure
from unbackdoor.leaderboard.tables import ESTABLISHED, Column, Entry, Line, Sheet, Table
from unbackdoor.leaderboard.timing import Timing, timing
from unbackdoor.report import html as pages
from unbackdoor.report.escape import Html, html, html_short

#: The project's method, whose row is marked.
OURS = "lpp"
WORDS = 160


def render(sheets: Sequence[Sheet], drawn: Mapping[str, Sequence[Figure]], *, title: str = "Benchmark") -> str:
    """The whole page.

    Args:
        sheets: what was measured.
        drawn: name of a grid -> its figures.
        title: of the page.
    """
    folder = resources.files("unbackdoor.leaderboard")
    style, script = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("benchmark.css", "sort.js"))
    sections = [_head([sheet.grid for sheet in sheets], title), _leaderboard(sheets)]
    sections += [_grid(sheet, drawn.get(sheet.grid.name, ())) for sheet in sheets]
    sections.append(_everything(sheets))
    return pages.page(title, sections, style=style, script=script)


def _head(grids: Sequence[ClaimedGrid], title: str) -> Html:
    total = sum(grid.done for grid in grids)
    failed = sum(len(grid.failed) for grid in grids)
    left = sum(grid.left for grid in grids)
    said = f"{total:,} results of {len(grids)} grid{'' if len(grids) == 1 else 's'}"
    said += f", {failed:,} failed" if failed else ""
    said += f"; {left:,} cells were not run" if left else ""
    links = "".join(f'<li><a href="#{_ident(grid)}">{html_short(grid.title, WORDS)}</a></li>' for grid in grids)
    lead = (
        f'<p class="headline">{html(said)}.</p><ul class="contents"><li><a href="#leaderboard">Leaderboard</a></li>'
        f'{links}<li><a href="#everything">Every result</a></li></ul>'
    )
    return pages.header(title, eyebrow="unbackdoor bench report", lead=Html(lead))


# Leaderboard


def _leaderboard(sheets: Sequence[Sheet]) -> Html:
    rows = []
    plain = [sheet for sheet in sheets if not sheet.variants]
    for sheet in plain or sheets:
        for table in sheet.plain:
            rows += [(table, line, found) for line in table.lines if (found := table.average(line)) is not None]
    rows.sort(key=lambda row: -1.0 if row[2][2] is None else row[2][2], reverse=True)
    body = "".join(_leader(table, line, found) for table, line, found in rows)
    heads = (
        "Method",
        "Data set, network, rate, seeds",
        "Attacks",
        "ACC",
        "ASR",
        "ACC - ASR",
        "DER",
        "Clean cost",
        "Seconds",
    )
    lead = (
        "Means over the established attacks of each setting, on the seeds that all of its methods share: where some "
        "have results on fewer, those that have them on all stand once more. Clean cost: points "
        "of accuracy that the method takes from a network without a backdoor. DER in percent: 50 does nothing, 100 "
        "takes all of the attack and nothing else. Rows of different settings are not to be compared."
    )
    if plain and len(plain) < len(sheets):
        lead += " Grids in which settings are swept are left out."
    return pages.section("Leaderboard", _sortable(heads, body), lead=lead, ident="leaderboard")


def _leader(table: Table, line: Line, average: tuple[float, float, float | None]) -> str:
    acc, asr, der = average
    rate = "" if table.rate is None else f", {100 * table.rate:g} %"
    place = f"{table.titles['data']}, {table.titles['arch']}{rate}, {table.recipe}, {table.seeds_said}"
    return (
        f'<tr><th scope="row">{html_short(line.title, WORDS)}</th><td>{html_short(place, WORDS)}</td>'
        f"{_number(len(table.established), '{:.0f}')}{_number(acc)}{_number(asr)}{_number(acc - asr)}"
        f"{_number(None if der is None else 100 * der)}{_number(table.clean_cost(line))}"
        f"{_number(table.seconds(line.method, line), '{:.3g}')}</tr>"
    )


def _everything(sheets: Sequence[Sheet]) -> Html:
    heads = ("Method", "Data set, network", "Attack", "ACC", "ASR", "RA", "DER", "Seeds", "Paper")
    rows = []
    for sheet in sheets:
        for table in (*sheet.tables, *sheet.variants):
            for (line, column), entry in table.entries.items():
                if entry.acc is not None:
                    rows.append(_result(table, line, column, entry))
    body = _sortable(heads, "".join(rows))
    return pages.section(
        "Every result",
        f"<details><summary>{len(rows):,} rows</summary>{body}</details>",
        lead="One row a method, network and attack; means over the seeds. The CSV beside this page has a row a claim.",
        ident="everything",
    )


def _result(table: Table, line: Line, column: Column, entry: Entry) -> str:
    rate = "" if column.clean or table.rate is None else f", {100 * table.rate:g} %"
    rates = "".join(_number(None if mean is None else mean.value) for mean in (entry.acc, entry.asr, entry.ra))
    der = _number(None if entry.der is None else 100 * entry.der.value)
    seeds = len({claim.seed for claim in entry.claims})
    place = f"{table.titles['data']}, {table.titles['arch']}, {table.recipe}"
    return (
        f'<tr><th scope="row">{html_short(line.title, WORDS)}</th><td>{html_short(place, WORDS)}</td>'
        f"<td>{html_short(column.title + rate, WORDS)}</td>{rates}{der}{_number(seeds, '{:.0f}')}"
        f"<td>{html(text.paper(entry))}</td></tr>"
    )


def _sortable(heads: Sequence[str], body: str) -> str:
    row = "".join(f'<th scope="col">{html(head)}</th>' for head in heads)
    return (
        f'<div class="boxed"><table class="sortable"><thead><tr>{row}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _number(value: float | None, form: str = "{:.2f}") -> str:
    if value is None:
        return '<td class="number" data-v=""><span class="missing">none</span></td>'
    return f'<td class="number" data-v="{value:.6g}">{form.format(value + 0.0)}</td>'


# A grid


def _grid(sheet: Sheet, drawn: Sequence[Figure]) -> Html:
    grid = sheet.grid
    parts = [f'<p class="key">{html(text.standing(grid))}</p>', _failed(grid)]
    for table in sheet.plain:
        parts.append(_table(table))
        found = None if table.every_seed else timing(table)
        if found is not None:
            parts.append(_timing(found))
    if sheet.variants:
        parts.append("<h3>Settings, one at a time</h3>")
        parts += [
            f"<details><summary>{html(table.title)}</summary>{_table(table, heading=False)}</details>"
            for table in sheet.variants
        ]
    if drawn:
        parts.append(f'<div class="drawn">{"".join(_figure(figure) for figure in drawn)}</div>')
    return pages.section(grid.title, "".join(parts), ident=_ident(grid))


def _failed(grid: ClaimedGrid) -> str:
    if not grid.failed:
        return ""
    items = "".join(f"<li>{html_short(c.title, WORDS)}: {html_short(c.failed or '', 600)}</li>" for c in grid.failed)
    return f'<div class="alarm"><h3>Failed, and in no average</h3><ul class="groups">{items}</ul></div>'


def _table(table: Table, *, heading: bool = True) -> str:
    heads = "".join(f'<th scope="col">{_column(table, column)}</th>' for column in table.columns)
    rows = "".join(_row(table, line) for line in table.lines)
    title = f"<h3>{html(table.title)}</h3>" if heading else ""
    note = _notes(table)
    seeds = f'<span class="quiet">{html(table.seeds_said)}</span>' if table.seeds_said else ""
    average = f'<th scope="col">Average{seeds}</th>'
    return (
        f'{title}<div class="boxed"><table class="grid-table"><thead><tr><th scope="col">ACC / ASR, %</th>{heads}'
        f'{average}<th scope="col">Seconds</th></tr></thead><tbody>{rows}</tbody></table></div>'
        f"{note}"
    )


def _column(table: Table, column: Column) -> str:
    title = html_short(column.title, WORDS)
    if column.clean:
        return f'{title}<span class="quiet">ACC (change)</span>'
    if column in table.established:
        return title
    before = table.asr_before(column)
    why = "no network without a defence" if before is None else f"ASR {before:.1f} %"
    return f'{title} &dagger;<span class="quiet">not established: {why}</span>'


def _row(table: Table, line: Line) -> str:
    cells = "".join(_cell(table.entries.get((line, column)), line, table.winners[column]) for column in table.columns)
    average = table.average(line)
    said = '<span class="missing">incomplete</span>' if average is None else f"{average[0]:.2f} / {average[1]:.2f}"
    seconds = text.seconds(table, line) or "&ndash;"
    ours = ' class="ours"' if line.method == OURS else ""
    title = html_short(line.title, WORDS)
    return f'<tr{ours}><th scope="row">{title}</th>{cells}<td>{said}</td><td>{seconds}</td></tr>'


def _cell(entry: Entry | None, line: Line, best: tuple[tuple[Line, ...], tuple[Line, ...]]) -> str:
    if entry is None:
        return '<td><span class="missing">&ndash;</span></td>'
    if entry.acc is None:
        reason = entry.failed[0].failed if entry.failed else "nothing was measured"
        return f'<td title="{html_short(reason or "", 400)}"><span class="missing">failed</span></td>'
    badges = ""
    for equal, kind, rule, mark in zip(best, (" gap", ""), ("ACC - ASR", "DER"), ("&#9733;", "&#9670;"), strict=True):
        if line in equal:
            others = f", equal with {len(equal) - 1} more" if len(equal) > 1 else ""
            badges += f'<span class="badge{kind}" title="best by {rule}{others}">{mark}</span>'
    won = ' class="won"' if badges else ""
    seeds = sorted({claim.seed for claim in entry.claims})
    failed = f", {len(entry.failed)} failed" if entry.failed else ""
    about = f"seeds {', '.join(map(str, seeds[:12]))}{failed}" if len(seeds) > 1 else f"seed {seeds[0]}{failed}"
    paper = text.paper(entry)
    quiet = f'<span class="quiet">{html(paper)}</span>' if paper else ""
    return f'<td title="{html(about)}"><span{won}>{html(text.both(entry))}</span>{badges}{quiet}</td>'


def _notes(table: Table) -> str:
    hardware = sorted(
        {
            ", ".join(str(c.hardware[k]) for k in ("device", "processor", "threads") if k in c.hardware)
            for e in table.entries.values()
            for c in e.claims
            if c.hardware
        }
    )
    said = [
        "&#9733; best by ACC &minus; ASR (the paper's rule), &#9670; best by DER, each on the seeds that all methods "
        "of a column share, as are the averages; methods that agree in two digits of a percent are equally good. "
        "&plusmn; half a 95 % interval over training seeds or, of a single network, over draws of clean images; of two "
        "values, both are said. Whole test sets."
    ]
    if len(table.established) < len(table.attacks):
        said.append(f"&dagger; below an ASR of {ESTABLISHED:g} % without a defence: in no average, with no best.")
    if hardware:
        said.append(html(f"Run on (device, processor, threads): {'; '.join(hardware[:4])}."))
    said += [html(note) for note in text.notes(table)]
    return f'<p class="key">{" ".join(said)}</p>'


def _timing(found: Timing) -> str:
    heads = "".join(f'<th scope="col">{html(METHODS[m])}</th>' for m in found.seconds)
    ours = "".join(f"<td>{value:.3g}</td>" for value in found.seconds.values())
    paper = "".join(
        f"<td>{found.printed[m]:g}</td>" if m in found.printed else "<td>&ndash;</td>" for m in found.seconds
    )
    rows = f'<tr><th scope="row">here</th>{ours}</tr>'
    if found.printed:
        rows += f'<tr><th scope="row">Table 5</th>{paper}</tr>'
    return (
        f'<div class="boxed"><table class="grid-table"><thead><tr><th scope="col">Seconds</th>{heads}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="key">{html(found.words)} Other work may have run beside.</p>'
    )


def _figure(figure: Figure) -> str:
    return (
        f"<figure><h4>{html(figure.title)}</h4>{figure.themed}<figcaption>{html(figure.caption)}</figcaption></figure>"
    )


def _ident(grid: ClaimedGrid) -> str:
    kept = "".join(c if c.isalnum() else "-" for c in grid.name.lower())
    return f"grid-{kept}"
