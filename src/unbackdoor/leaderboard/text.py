"""Tables as Markdown, as LaTeX and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from unbackdoor.findings import RATES
from unbackdoor.leaderboard.claims import NONE, Claim, ClaimedGrid
from unbackdoor.leaderboard.tables import ESTABLISHED, Column, Entry, Line, Mean, Sheet, Table

#: Columns of the CSV, one row a claim.
CSV = (
    "grid", "kind", "data", "arch", "recipe", "epochs", "attack", "rate", "target", "seed", "method", "clean",
    "clean_seed", "acc", "asr", "ra", "recall", "acc_before", "asr_before", "ra_before", "recall_before", "der",
    "pruned", "scaled", "changed", "seconds", "failed", "key",
)  # fmt: skip

SWEPT = ": settings, one at a time"

LEGEND = (
    "- **ACC / ASR** are in percent, on the whole test set. ACC is the accuracy. ASR is the attack success rate: "
    "triggered images of other classes that are given the target class.\n"
    "- **±** is half of a 95 % interval (Student's t) over training seeds. If there is one network, it is over draws "
    "of clean images. Two values are both shown. A figure with neither comes from one run.\n"
    "- **Bold** is the best defence by ACC - ASR, the paper's rule. _Italic_ is the best by DER, the defence "
    "effectiveness rating. Both use the seeds that all methods of the column share. Methods that agree to two decimals "
    "are equally good.\n"
    f"- **†** marks an attack whose ASR without a defence is below {ESTABLISHED:g} %. It has no best defence and "
    "counts in no average.\n"
    "- **Average** is over the other attacks, on the seeds in its head.\n"
    "- **Clean network** shows ACC, and how much the method changes it.\n"
    "- **Seconds** are for one call of the method, on a machine that also did other work.\n"
    "- **Paper** is the printed figure, followed by the difference of ours from it."
)
RECALL = (
    "- **R_t**, the third figure where there is one, is the recall of the target class: clean test images of it that "
    "are given it. A repair that ends it is none."
)


def markdown(sheets: Sequence[Sheet]) -> str:
    """Every table of every grid, as one document."""
    recall = any(sheet.has_recall for sheet in sheets)
    parts = ["# Results\n", LEGEND + (f"\n{RECALL}" if recall else "") + "\n"]
    for sheet in sheets:
        parts.append(f"## {_plain(sheet.grid.title)}\n")
        parts.append(standing(sheet.grid) + "\n")
        for table in sheet.all_tables:
            parts.append(f"### {_plain(table.title)}{SWEPT if table.swept else ''}\n")
            parts.append("\n".join(_markdown_rows(table)) + "\n")
            parts += [_plain(note) + "\n" for note in notes(table)]
    return "\n".join(parts)


def standing(grid: ClaimedGrid) -> str:
    """How much of a grid is done, in words."""
    words = f"{grid.done:,} of {grid.cells:,} cells are done"
    words += f", {len(grid.failed):,} failed" if grid.failed else ""
    words += f", {grid.left:,} were not run" if grid.left else ""
    words += f"; claims in its folder that belong to no cell, and are left out: {grid.strays:,}" if grid.strays else ""
    return words + "."


def notes(table: Table) -> list[str]:
    """Notes on methods that did nothing, on the networks of a column, on printed figures."""
    if table.every_seed:  # the table before it has them
        return []
    done: dict[Line, list[Claim]] = {}
    for (line, _), entry in table.entries.items():
        done.setdefault(line, []).extend(entry.claims)
    idle = [line for line, claims in done.items() if claims and all(claim.changed is False for claim in claims)]
    doubtful = [(place, entry.paper.note) for place, entry in table.entries.items() if entry.paper is not None]
    remarks: dict[str, list[str]] = {}
    for (line, column), entry in table.entries.items():
        for claim in entry.claims:
            if claim.note and line.method == NONE and not table.swept:
                remarks.setdefault(claim.note, []).append(f"{column.title} of seed {claim.seed}")
    return [
        *(f"{line.title} changed nothing in any of these networks." for line in idle),
        *(
            f"{column.title}: for some seed, methods were given different trainings of the network. Compare the "
            "changes and DER, which are relative to each method's network."
            for column in table.retrained
        ),
        *(f"{', '.join(places)}: {note}." for note, places in remarks.items()),
        *(f"{line.title}, {column.title}: {note}." for (line, column), note in doubtful if note),
    ]


def latex(sheets: Sequence[Sheet]) -> str:
    """Every table as a `tabular` of booktabs."""
    parts = ["% Made by unbackdoor bench report. Needs \\usepackage{booktabs}.\n"]
    for sheet in sheets:
        for table in sheet.all_tables:
            heads = " & ".join(_tex(_head(table, column)) for column in table.columns)
            parts += [
                f"% {_flat(sheet.grid.title)}: {_flat(table.title)}{SWEPT if table.swept else ''}",
                f"\\begin{{tabular}}{{l{'r' * (len(table.columns) + 2)}}}",
                "\\toprule",
                f"Method & {heads} & {_average_head(table)} & Seconds \\\\",
                "\\midrule",
            ]
            for line in table.lines:
                cells = [_tex_cell(table, line, column) for column in table.columns]
                cells += [_tex(average(table, line)), _tex(seconds(table, line))]
                parts.append(f"{_tex(line.title)} & {' & '.join(cells)} \\\\")
            parts += ["\\bottomrule", "\\end{tabular}\n"]
    return "\n".join(parts)


def table_csv(grids: Sequence[ClaimedGrid]) -> str:
    """One row a claim, in the order of the claims."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV)
    for grid in grids:
        for claim in grid.own:
            writer.writerow(_csv_row(grid, claim))
    return stream.getvalue()


def both(entry: Entry) -> str:
    """ACC / ASR of a cell, behind them R_t where it is known; or ACC and its change where there is no trigger.

    Of two seeds (or draws), both.
    """
    if entry.acc is None:
        return "failed" if entry.failed else "not run"
    means = [mean for mean in (entry.acc, entry.asr, entry.recall) if mean is not None]
    shown = " / ".join(map(number, means))
    if entry.asr is None and entry.acc_change is not None:
        shown += f" ({entry.acc_change.value:+.2f})"
    if all(mean.seeds == 2 for mean in means):
        pairs = zip(*(mean.values for mean in means), strict=True)
        shown += f", runs: {' and '.join(' / '.join(f'{value:.2f}' for value in pair) for pair in pairs)}"
    return shown


def number(mean: Mean) -> str:
    """A mean and half its interval, except for two values, whose interval is too wide to help."""
    return f"{mean.value:.2f}" + ("" if mean.half is None or mean.seeds == 2 else f" ± {mean.half:.2f}")


def paper(entry: Entry) -> str:
    """The printed figures, and ours less those; "" where the paper has none."""
    printed = entry.paper
    if printed is None or entry.acc is None:
        return ""
    theirs = [("-" if value is None else f"{value:.2f}") for value in (printed.acc, printed.asr)]
    ours = (entry.acc.value, None if entry.asr is None else entry.asr.value)
    less = [
        "-" if value is None or our is None else f"{our - value:+.2f}"
        for value, our in zip((printed.acc, printed.asr), ours, strict=True)
    ]
    if entry.asr is None:
        return f"paper {theirs[0]}, {less[0]}"
    return f"paper {theirs[0]} / {theirs[1]}, {less[0]} / {less[1]}"


def average(table: Table, line: Line) -> str:
    """ACC / ASR of a row, behind them R_t where it is known; "" where an attack was not run."""
    found = table.average(line)
    if found is None:
        return ""
    shown = [value for value in (*found[:2], table.average_recall(line)) if value is not None]
    return " / ".join(f"{value:.2f}" for value in shown)


def seconds(table: Table, line: Line) -> str:
    """Of a row, in three digits."""
    found = table.seconds(line.method, line)
    return "" if found is None else f"{found:.3g}"


def _head(table: Table, column: Column) -> str:
    weak = not column.clean and column not in table.established
    return column.title + (" †" if weak else "")


def _average_head(table: Table) -> str:
    return f"Average, {table.seed_words}" if table.seed_words else "Average"


def _markdown_rows(table: Table) -> list[str]:
    heads = [_plain(_head(table, column)) for column in table.columns]
    rows = [
        f"| Method | {' | '.join(heads)} | {_average_head(table)} | Seconds |",
        "|---" * (len(heads) + 3) + "|",
    ]
    for line in table.lines:
        cells = []
        for column in table.columns:
            entry = table.entries.get((line, column))
            if entry is None:
                cells.append("–")
                continue
            text = both(entry)
            by_gap, by_der = table.winners[column]
            if line in by_gap:
                text = f"**{text}**"
            if line in by_der:
                text = f"_{text}_"
            cells.append(text + (f"<br>{paper(entry)}" if paper(entry) else ""))
        rows.append(f"| {_plain(line.title)} | {' | '.join(cells)} | {average(table, line)} | {seconds(table, line)} |")
    return rows


def _tex_cell(table: Table, line: Line, column: Column) -> str:
    entry = table.entries.get((line, column))
    if entry is None:
        return "--"
    text = _tex(both(entry))
    by_gap, by_der = table.winners[column]
    if line in by_gap:
        text = f"\\textbf{{{text}}}"
    if line in by_der:
        text = f"\\underline{{{text}}}"
    return text


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "±": r"$\pm$", "†": r"$\dagger$", "~": r"\textasciitilde{}"}
    special |= {"^": r"\textasciicircum{}", **{c: f"\\{c}" for c in "&%$#_{}"}}
    return "".join(special.get(c, c) for c in _flat(text))


def _plain(text: str) -> str:
    """Nothing in it is Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|#~" else c for c in _flat(text))


def _flat(text: str) -> str:
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def _csv_row(grid: ClaimedGrid, claim: Claim) -> list[object]:
    counts = {name: getattr(claim, name) for name in RATES}
    counts |= {f"{name}_before": claim.before.get(name) for name in RATES}
    shares = {name: None if count is None else round(count.hits / count.total, 6) for name, count in counts.items()}
    row = {**vars(claim), "grid": grid.name, **shares}
    return [_harmless(value) if isinstance(value, str) else value for value in map(row.get, CSV)]


def _harmless(text: str) -> str:
    """No spreadsheet takes it for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
