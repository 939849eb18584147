"""Pages and tables: hostile names do nothing, and numbers are those of the claims."""

import base64
import csv
import hashlib
import io
import re

from claim_samples import claim, grid, large

from unbackdoor.leaderboard import Count, site, text
from unbackdoor.leaderboard.plots import figures
from unbackdoor.leaderboard.tables import Sheet

HOSTILE = "</script><script>alert(1)</script>|\\$x_1$\x1b[31m&<b>"


def page(*grids):
    sheets = [Sheet.of(g) for g in grids]
    return site.render(sheets, {s.grid.name: list(figures(s)) for s in sheets})


def test_the_page_names_its_only_script_by_its_digest():
    content = page(large())
    [script] = re.findall(r"<script>(.*?)</script>", content, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in content
    assert "default-src 'none'" in content
    assert not re.search(r'(src|href)="(?!#)', content.replace("xlink:href", "xlink"))


def test_the_part_of_every_seed_is_shown_and_repeats_nothing_else():
    sheet = Sheet.of(large())
    content = page(large())
    [part] = [table for table in sheet.plain if table.every_seed]
    assert part.title in content
    assert content.count(">Table 5</th>") == len(sheet.tables) == 1
    rows = sum(entry.acc is not None for table in (*sheet.tables, *sheet.variants) for entry in table.entries.values())
    assert f"<summary>{rows:,} rows</summary>" in content


def test_hostile_names_are_harmless():
    names = {"data": HOSTILE, "arch": HOSTILE, "attack": HOSTILE}
    bad = grid(
        claim(kind="training", method="none", asr=95, names=names),
        claim(names=names, method=HOSTILE, der=0.9, before=90),
        claim(names=names, method="clp", der=0.9, before=90, failed=HOSTILE, acc=None),
        title=HOSTILE,
        name=HOSTILE,
    )
    content = page(bad)
    assert content.count("<script>") == 1
    assert "alert(1)</script>" not in content
    assert "\x1b" not in content
    for made in (text.markdown([Sheet.of(bad)]), text.latex([Sheet.of(bad)])):
        assert "\x1b" not in made
    assert "<script>" not in text.markdown([Sheet.of(bad)])
    rows = [r for r in text.latex([Sheet.of(bad)]).splitlines() if "alert" in r and not r.startswith("%")]
    assert rows
    assert all(
        re.search(r"(?<!\\)\$(?!\\(pm|dagger)\$)", r.replace(r"$\pm$", "").replace(r"$\dagger$", "")) is None
        for r in rows
    )


def test_a_formula_in_a_name_is_no_formula_in_a_spreadsheet():
    found = list(csv.DictReader(io.StringIO(text.table_csv([grid(claim(method="=cmd|' /C calc'!A0"))]))))
    assert found[0]["method"].startswith("'=")


def test_the_csv_holds_every_claim():
    sample = large()
    rows = list(csv.DictReader(io.StringIO(text.table_csv([sample]))))
    assert len(rows) == len(sample.claims)
    for row, one in zip(rows, sample.claims, strict=True):
        assert row["acc"] == ("" if one.acc is None else str(one.acc.hits / one.acc.total))
        assert row["failed"] == (one.failed or "")


def test_the_difference_to_the_paper_stands_beside_it():
    sample = grid(claim(kind="training", method="none", acc=88.0, asr=96.0))
    assert "paper 88.79 / 94.96, -0.79 / +1.04" in page(sample)
    assert "paper 88.79 / 94.96, -0.79 / +1.04" in text.markdown([Sheet.of(sample)])


def test_failures_and_what_is_left_are_said():
    content = page(large())
    assert "ran out of memory" in content
    assert "1 failed" in content
    assert "4 were not run" in content


def test_the_leaderboard_leaves_out_grids_that_sweep():
    def leaders(content):
        return content[content.index('id="leaderboard"') :].split("</table>")[0].count("<tr>") - 1

    trained = claim(kind="training", method="none", asr=95)
    plain = grid(trained, claim(), claim(method="clp"))
    swept = grid(trained, claim(), claim(method="lpp:upper=2"), claim(method="lpp:upper=2.5"), name="swept")
    assert leaders(page(plain)) == 3
    assert leaders(page(swept, plain)) == 3
    assert leaders(page(swept)) == 2
    given = grid(trained, claim(), claim(method="ft:epochs=2"), name="given")
    assert leaders(page(given, plain, swept)) == 6
    assert "FT, epochs=2" in page(given, plain).split("</table>")[0]


def test_every_kind_of_table_marks_all_that_are_equally_good():
    trained = claim(kind="training", method="none", acc=91, asr=95)
    rates = {"clp": (90, 5), "lpp": (88, 3), "bnp": (80, 3)}
    sample = grid(trained, *(claim(method=m, acc=a, asr=b, der=0.5 + a / 200) for m, (a, b) in rates.items()))
    made = {m: f"{a:.2f} / {b:.2f}" for m, (a, b) in rates.items()}
    written, tex, content = text.markdown([Sheet.of(sample)]), text.latex([Sheet.of(sample)]), page(sample)
    assert f"_**{made['clp']}**_" in written
    assert f"**{made['lpp']}**" in written
    assert f"**{made['bnp']}**" not in written
    assert f"\\underline{{\\textbf{{{made['clp']}}}}}" in tex
    assert f"\\textbf{{{made['lpp']}}}" in tex
    assert f"\\textbf{{{made['bnp']}}}" not in tex
    assert content.count('title="best by ACC - ASR, equal with 1 more"') == 2
    assert content.count('title="best by DER"') == 1


def test_the_targets_recall_has_a_column_only_where_it_is_known():
    none = claim(kind="training", method="none", asr=95)
    old, new = (
        grid(none, claim(der=0.9, before=90, recall=recall)) for recall in (None, Count(hits=7123, total=10_000))
    )
    assert "R_t" not in page(old)
    content = page(new)
    assert '<th scope="col">ACC / ASR / R_t, %</th>' in content
    assert content.count('<th scope="col">R_t</th>') == 2  # the leaderboard, and every result
    assert content.count(">71.23</td>") == 2
    header, *rows = csv.reader(io.StringIO(text.table_csv([old, new])))
    assert [row[header.index("recall")] for row in rows] == ["", "", "", "0.7123"]
