"""The benchmark's page: one file, readable offline, on paper and on a phone; one script, which sorts tables.

What `templates/site.html` shows, as plain values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import NamedTuple

from unbackdoor.leaderboard import text
from unbackdoor.leaderboard.claims import ClaimedGrid
from unbackdoor.leaderboard.paper import METHODS
from unbackdoor.leaderboard.plots import Figure
from unbackdoor.leaderboard.tables import ESTABLISHED, Column, Entry, Line, Sheet, Table
from unbackdoor.leaderboard.timing import Timing, timing
from unbackdoor.report.pages import page

#: The project's method, whose row is marked.
OURS = "lpp"
#: What a cell shows that has nothing to show.
DASH = "–"


class Number(NamedTuple):
    """A cell that its column is sorted by; both are empty where nothing was measured."""

    shown: str
    value: str


class Result(NamedTuple):
    """A row of a table that can be sorted; a cell is text or a number."""

    title: str
    cells: Sequence[str | Number]


class Badge(NamedTuple):
    """A mark on the best."""

    kind: str
    title: str
    mark: str


class Cell(NamedTuple):
    """Of a grid's table: what was measured, or why nothing was; all is empty where there is no such cell."""

    title: str = ""
    words: str = ""
    missing: str = ""
    badges: Sequence[Badge] = ()
    paper: str = ""


class GridRow(NamedTuple):
    """A method in a grid's table."""

    title: str
    ours: bool
    cells: Sequence[Cell]
    average: str
    seconds: str


class GridTable(NamedTuple):
    """A grid's table, of some rates; its heads have a note each, or none."""

    title: str
    rates: str
    heads: Sequence[tuple[str, str]]
    seeds: str
    rows: Sequence[GridRow]
    notes: Sequence[str]
    timing: Seconds | None


class Seconds(NamedTuple):
    """The methods' seconds: here, and as printed."""

    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    words: str


class Shown(NamedTuple):
    """A grid."""

    title: str
    ident: str
    standing: str
    failed: Sequence[tuple[str, str]]
    tables: Sequence[GridTable]
    variants: Sequence[GridTable]
    drawn: Sequence[Figure]


def render(sheets: Sequence[Sheet], drawn: Mapping[str, Sequence[Figure]], *, title: str = "Benchmark") -> str:
    """The whole page.

    Args:
        sheets: what was measured.
        drawn: name of a grid -> its figures.
        title: of the page.
    """
    folder = resources.files("unbackdoor.leaderboard")
    style, script = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("benchmark.css", "sort.js"))
    plain = [sheet for sheet in sheets if not sheet.variants]
    recall = any(sheet.has_recall for sheet in sheets)
    return page(
        "site.html",
        package="unbackdoor.leaderboard",
        title=title,
        style=style,
        script=script,
        headline=_headline([sheet.grid for sheet in sheets]),
        recall=recall,
        leaders=_leaders(plain or sheets, recall=recall),
        some_left_out=0 < len(plain) < len(sheets),
        grids=[_grid(sheet, drawn.get(sheet.grid.name, ())) for sheet in sheets],
        results=list(_results(sheets, recall=recall)),
    )


def _headline(grids: Sequence[ClaimedGrid]) -> str:
    total = sum(grid.done for grid in grids)
    failed = sum(len(grid.failed) for grid in grids)
    left = sum(grid.left for grid in grids)
    words = f"{total:,} results of {len(grids)} grid{'' if len(grids) == 1 else 's'}"
    words += f", {failed:,} failed" if failed else ""
    return words + (f"; {left:,} cells were not run" if left else "")


# Leaderboard


def _leaders(sheets: Sequence[Sheet], *, recall: bool) -> list[Result]:
    rows = []
    for sheet in sheets:
        for table in sheet.plain:
            rows += [(table, line, found) for line in table.lines if (found := table.average(line)) is not None]
    rows.sort(key=lambda row: -1.0 if row[2][2] is None else row[2][2], reverse=True)
    return [_leader(table, line, found, recall=recall) for table, line, found in rows]


def _leader(table: Table, line: Line, average: tuple[float, float, float | None], *, recall: bool) -> Result:
    acc, asr, der = average
    rate = "" if table.rate is None else f", {100 * table.rate:g} %"
    return Result(
        line.title,
        (
            f"{table.titles['data']}, {table.titles['arch']}{rate}, {table.recipe}, {table.seed_words}",
            _number(len(table.established), "{:.0f}"),
            _number(acc),
            _number(asr),
            _number(acc - asr),
            *([_number(table.average_recall(line))] if recall else []),
            _number(None if der is None else 100 * der),
            _number(table.clean_cost(line)),
            _number(table.seconds(line.method, line), "{:.3g}"),
        ),
    )


def _results(sheets: Sequence[Sheet], *, recall: bool) -> Iterator[Result]:
    for sheet in sheets:
        for table in (*sheet.tables, *sheet.variants):
            for (line, column), entry in table.entries.items():
                if entry.acc is not None:
                    yield _result(table, line, column, entry, recall=recall)


def _result(table: Table, line: Line, column: Column, entry: Entry, *, recall: bool) -> Result:
    means = (entry.acc, entry.asr, entry.ra, *([entry.recall] if recall else []))
    rate = "" if column.clean or table.rate is None else f", {100 * table.rate:g} %"
    return Result(
        line.title,
        (
            f"{table.titles['data']}, {table.titles['arch']}, {table.recipe}",
            column.title + rate,
            *(_number(None if mean is None else mean.value) for mean in means),
            _number(None if entry.der is None else 100 * entry.der.value),
            _number(len({claim.seed for claim in entry.claims}), "{:.0f}"),
            text.paper(entry),
        ),
    )


def _number(value: float | None, form: str = "{:.2f}") -> Number:
    return Number("", "") if value is None else Number(form.format(value + 0.0), f"{value:.6g}")


# A grid


def _grid(sheet: Sheet, drawn: Sequence[Figure]) -> Shown:
    grid = sheet.grid
    return Shown(
        title=grid.title,
        ident="grid-" + "".join(c if c.isalnum() else "-" for c in grid.name.lower()),
        standing=text.standing(grid),
        failed=[(claim.title, claim.failed or "") for claim in grid.failed],
        tables=[_table(table, None if table.every_seed else timing(table)) for table in sheet.plain],
        variants=[_table(table, None) for table in sheet.variants],
        drawn=drawn,
    )


def _table(table: Table, seconds: Timing | None) -> GridTable:
    return GridTable(
        title=table.title,
        rates="ACC / ASR / R_t, %" if table.has_recall else "ACC / ASR, %",
        heads=[_head(table, column) for column in table.columns],
        seeds=table.seed_words,
        rows=[_row(table, line) for line in table.lines],
        notes=_notes(table),
        timing=None if seconds is None else _seconds(seconds),
    )


def _head(table: Table, column: Column) -> tuple[str, str]:
    if column.clean:
        return column.title, "ACC (change)"
    if column in table.established:
        return column.title, ""
    before = table.asr_before(column)
    why = "not run without a defence" if before is None else f"ASR {before:.1f} %"
    return f"{column.title} †", f"not established: {why}"


def _row(table: Table, line: Line) -> GridRow:
    return GridRow(
        title=line.title,
        ours=line.method == OURS,
        cells=[_cell(table.entries.get((line, column)), line, table.winners[column]) for column in table.columns],
        average=text.average(table, line),
        seconds=text.seconds(table, line) or DASH,
    )


def _cell(entry: Entry | None, line: Line, best: tuple[tuple[Line, ...], tuple[Line, ...]]) -> Cell:
    if entry is None:
        return Cell(missing=DASH)
    if entry.acc is None:
        reason = entry.failed[0].failed if entry.failed else "nothing was measured"
        return Cell(title=reason or "", missing="failed")
    badges = []
    for equal, kind, rule, mark in zip(best, ("gap", ""), ("ACC - ASR", "DER"), "★◆", strict=True):
        if line in equal:
            others = f", equal with {len(equal) - 1} more" if len(equal) > 1 else ""
            badges.append(Badge(kind, f"best by {rule}{others}", mark))
    seeds = sorted({claim.seed for claim in entry.claims})
    failed = f", {len(entry.failed)} failed" if entry.failed else ""
    about = f"seeds {', '.join(map(str, seeds[:12]))}{failed}" if len(seeds) > 1 else f"seed {seeds[0]}{failed}"
    return Cell(title=about, words=text.both(entry), badges=badges, paper=text.paper(entry))


def _notes(table: Table) -> list[str]:
    hardware = sorted(
        {
            ", ".join(str(c.hardware[k]) for k in ("device", "processor", "threads") if k in c.hardware)
            for e in table.entries.values()
            for c in e.claims
            if c.hardware
        }
    )
    notes = [
        "★ is the best by ACC − ASR (the paper's rule), ◆ the best by DER. Both, and the averages, use the seeds that "
        "all methods of a column share. Methods that agree to two decimals are equally good. ± is half of a 95 % "
        "interval over training seeds, or over draws of clean images if there is one network. Two values are both "
        "shown. Rates are on the whole test set."
    ]
    if len(table.established) < len(table.attacks):
        notes.append(
            f"† marks an attack whose ASR without a defence is below {ESTABLISHED:g} %. It has no best defence and "
            "counts in no average."
        )
    if table.has_recall:
        notes.append("R_t is the recall of the target class: clean test images of it that are given it.")
    if hardware:
        notes.append(f"Run on (device, processor, threads): {'; '.join(hardware[:4])}.")
    return [*notes, *text.notes(table)]


def _seconds(found: Timing) -> Seconds:
    rows = [("here", [f"{value:.3g}" for value in found.seconds.values()])]
    if found.printed:
        rows.append(("Table 5", [f"{found.printed[m]:g}" if m in found.printed else DASH for m in found.seconds]))
    return Seconds(heads=[METHODS[m] for m in found.seconds], rows=rows, words=found.words)
