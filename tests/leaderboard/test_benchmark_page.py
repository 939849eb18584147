"""The benchmark's page in a browser: wide and narrow, sorted, narrowed, without leave for anything else."""

from pathlib import Path

import pytest
from claim_samples import large

from browser import CHROMIUM, browser
from unbackdoor.leaderboard import write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

ROWS = "[...document.querySelector('table.sortable').tBodies[0].rows].filter(r => !r.hidden)"
COLUMN = ROWS + ".map(r => r.cells[{}].textContent)"


@pytest.fixture
def report(tmp_path: Path) -> Path:
    write_report(tmp_path / "report", [large()])
    return tmp_path / "report" / "index.html"


def test_it_sorts_and_narrows_its_leaderboard(report: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as page:
        page.open(report, width=1280)
        names, accuracies = page.value(COLUMN.format(0)), page.value(COLUMN.format(3))
        assert len(names) > 4
        press = "document.querySelector('table.sortable').tHead.rows[0].cells[3].querySelector('button').click()"
        page.value(press)
        numbers = [float(text) for text in page.value(COLUMN.format(3))]
        assert numbers == sorted(map(float, accuracies), reverse=True)
        page.value(press)
        assert [float(text) for text in page.value(COLUMN.format(3))] == numbers[::-1]
        assert page.value("document.querySelector('th[aria-sort]').textContent") == "ACC"
        assert sorted(page.value(COLUMN.format(0))) == sorted(names)
        page.value("(f => { f.value = 'lpp'; f.dispatchEvent(new Event('input')); })(document.querySelector('input'))")
        assert set(page.value(COLUMN.format(0))) == {name for name in names if "LPP" in name}
        assert page.complaints == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_is_as_wide_as_its_screen(report: Path, tmp_path: Path, width: int) -> None:
    """Tables scroll in their own boxes; figures and words fit."""
    with browser(tmp_path) as page:
        page.open(report, width=width)
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value("document.querySelectorAll('figure svg').length") > 3
        wide = (
            "[...document.querySelectorAll('figure svg, p, h1, h2, h3')]"
            ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
        )
        assert page.value(wide) == []
        size = "parseFloat(getComputedStyle(e).fontSize)"
        small = f"[...document.querySelectorAll('p, td, th')].filter(e => {size} < 11).length"
        assert page.value(small) == 0


def test_it_asks_for_nothing_and_runs_nothing_else(report: Path, tmp_path: Path) -> None:
    page_text = report.read_text()
    hostile = report.with_name("hostile.html")
    hostile.write_text(page_text.replace("</main>", "<script>document.title = 'owned'</script></main>"))
    assert hostile.read_text() != page_text
    with browser(tmp_path) as page:
        page.open(report, width=1280)
        assert page.value("performance.getEntriesByType('resource').map(e => e.name)") == []
        page.open(hostile, width=1280)
        assert page.value("document.title") != "owned"
        assert any("Content Security Policy" in said for said in page.complaints)
