"""The report as a page."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path

import pytest
from report_samples import (
    HOSTILE,
    Structure,
    a_bare_report,
    a_hostile_report,
    a_huge_report,
    a_layer,
    a_report,
    a_report_without_findings,
    part,
)

from browser import CHROMIUM, browser
from unbackdoor.findings import LayerReport, Remark, Report
from unbackdoor.report import html, pages, strip

REPORTS = {
    "ordinary": a_report(),
    "bare": a_bare_report(),
    "nothing found": a_report_without_findings(),
    "incomplete": a_report(not_covered=(Remark("conv9", "Conv2d", "no norm"),), unpaired_norms=("bn9",)),
    "no spread": a_report(a_layer(scores=(1.0, 1.0), std=0.0, pruned_high=(), pruned_low=(), scaled=())),
    "one channel": a_report(a_layer(scores=(1.0,), pruned_high=(), pruned_low=(), scaled=(), factors=())),
    "no scores": a_report(
        a_layer(scores=(None, None), mean=None, std=None, pruned_high=(), pruned_low=(), scaled=(), not_finite=(0, 1))
    ),
    "no cuts": a_report(a_layer(lower=None, band=None, upper=None)),
}


@pytest.mark.parametrize(
    "name", [name for name in HOSTILE.values() if name], ids=[key for key in HOSTILE if key != "empty"]
)
def test_a_hostile_name_changes_no_element(name: str) -> None:
    page = a_hostile_report(name).to_html()
    assert all(char == "\n" or char.isprintable() for char in page)
    page.encode()
    assert Structure(page).tags == Structure(a_hostile_report("name").to_html()).tags


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_every_element_is_closed_and_every_anchor_and_mark_exists(report: Report) -> None:
    page = report.to_html()
    structure = Structure(page)
    assert not structure.open
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


@pytest.mark.parametrize("report", [*REPORTS.values(), a_hostile_report("https://example.org/x.js")])
def test_the_page_loads_nothing_and_runs_nothing(report: Report) -> None:
    structure = Structure(report.to_html())
    assert not {tag for tag, _ in structure.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    names = {name for _, attributes in structure.tags for name in attributes}
    assert not {name for name in names if name.startswith("on") or name == "src"}
    policy = next(value for value in structure.values if value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    style = report.to_html().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_equal_reports_give_equal_pages() -> None:
    assert a_report().to_html() == a_report().to_html()


def test_every_outlier_has_a_tooltip_and_is_listed() -> None:
    layer = a_layer(outliers=5)
    page = a_report(layer).to_html()
    for channel in (*layer.pruned_high, *layer.pruned_low):
        assert f"<title>channel {channel}: score " in page
        assert f"{channel}&nbsp;(+" in page


def test_kinds_of_channels_differ_in_shape() -> None:
    page = a_report(a_layer(channels=400, outliers=3, pruned_low=(0,))).to_html()
    for shape in ("m-high", "m-low", "m-near"):
        assert f'href="#{shape}"' in page
    shapes = [re.search(rf'id="{shape}" d="([^"]+)"', page) for shape in ("m-high", "m-low", "m-near")]
    assert len({shape.group(1) for shape in shapes if shape}) == 3


def test_pictures_have_words() -> None:
    page = a_report().to_html()
    for found in re.findall(r"<svg[^>]*>", page):
        nested = "viewBox" in found  # the dots inside a strip that is described as a whole
        assert nested or 'aria-hidden="true"' in found or 'role="img" aria-label="' in found


def test_layers_share_one_axis_that_holds_every_cut() -> None:
    layers = (a_layer(outliers=0), a_layer(outliers=3, z_upper=9.0))
    axis = strip.common_axis(layers)
    for layer in layers:
        for cut in (layer.lower, layer.band, layer.upper):
            z = layer.distance(cut)
            assert z is not None
            assert axis.holds(z)


def test_a_score_off_the_axis_is_said() -> None:
    layer = a_layer(channels=1024, outliers=1, seed=3)
    scores = list(layer.scores)
    scores[layer.pruned_high[0]] = layer.mean + 25 * layer.std  # type: ignore[operator]
    layer = dataclasses.replace(layer, scores=tuple(scores))
    assert strip.common_axis([layer]).high == strip.FARTHEST_HIGH
    assert "1 off the axis, up to +25.0" in a_report(layer).to_html()


def test_what_is_not_drawn_is_said() -> None:
    layer = a_layer(channels=2048, outliers=0)
    report = a_report(*[layer] * 100)
    budget = strip.Budget.of(report)
    page = drawn(layer, strip.common_axis([layer]), budget)
    assert page.count("h0") == budget.dots
    assert re.search(rf"Shown: {budget.dots:,} of [\d,]+ untouched channels", page)
    assert "Shown:" not in drawn(a_layer(), strip.common_axis([layer]), budget)


def drawn(layer: LayerReport, axis: strip.Axis, budget: strip.Budget) -> str:
    return part("strip.svg", "detail", strip.detail(layer, axis, budget), "")


def test_an_incomplete_report_says_so_first() -> None:
    text = Structure(REPORTS["incomplete"].to_html()).text
    assert text.index("Incomplete") < text.index("layers scored")
    assert "conv9" in text
    assert "alarm" in REPORTS["incomplete"].to_html().split("</style>")[1]
    assert "alarm" not in a_report().to_html().split("</style>")[1]


def test_outliers_that_cannot_be_cut_are_said() -> None:
    page = a_report(a_layer("conv1", pruned_high=(), scaled=(), immutable=(5, 7))).to_html()
    assert "no outliers" not in page
    assert "Outliers that cannot be pruned (z)" in page


def test_channels_without_a_score_are_said() -> None:
    text = Structure(REPORTS["no scores"].to_html()).text
    assert "No channel has a finite score" in text
    assert "Without a finite score (NaN or infinite) 0, 1" in text


def test_nothing_found_is_not_called_more_than_that() -> None:
    text = Structure(a_report_without_findings().to_html()).text
    assert "No outlier channel was found. This does not prove that the model has no backdoor." in text


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_no_model_is_called_safe_or_clean(report: Report) -> None:
    assert not re.search(r"\b(safe|clean)\b", Structure(report.to_html()).text, re.IGNORECASE)


def test_the_class_is_a_guess() -> None:
    assert "a guess, not a verdict" in Structure(a_report().to_html()).text


def own_page(body: str, **values: object) -> str:
    """A page that somebody makes of their own, from our templates."""
    head = '{% extends "page.html" %}{% import "sections.html" as sections %}{% block main %}'
    return pages.page(pages.environment().from_string(head + body + "{% endblock %}"), title="Both", **values)


def test_two_reports_can_share_a_page() -> None:
    views = {name: html.View(a_report(), prefix=name, level=3) for name in ("lpp", "clp")}
    heading = "{% call sections.section(name|upper) %}{% endcall %}"
    body = "{% for name, view in views.items() %}" + heading + "{{ sections.report(view) }}{% endfor %}"
    page = own_page(body, views=views)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {"lpp-0", "clp-0"} <= set(ids)
    assert not Structure(page).open


def test_extra_markup_comes_before_the_sections() -> None:
    block = '{% block before_sections %}<p id="mine">here</p>{% endblock %}'
    own = pages.environment().from_string('{% extends "report.html" %}' + block)
    page = html.render(a_report(), title="A & B", template=own)
    assert "<title>A &amp; B" in page
    assert page.index('id="mine"') < page.index("Layer by layer")


def test_a_huge_report_makes_a_small_page_soon() -> None:
    report = a_huge_report()
    start = time.perf_counter()
    page = report.to_html()
    assert time.perf_counter() - start < 30
    assert len(page.encode()) < 5_000_000
    some = [dataclasses.replace(layer, pruned_high=tuple(range(2048)), scaled=()) for layer in report.layers]
    assert len(a_report(*some).to_html().encode()) < 6_000_000


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_no_script_of_a_name_runs_in_a_browser(tmp_path: Path) -> None:
    attack = "</title></style></svg>" + "".join(HOSTILE[key] for key in ("script", "img", "single", "style", "comment"))
    page = tmp_path / "report.html"
    page.write_text(a_hostile_report(attack).to_html(), encoding="utf-8")
    control = tmp_path / "control.html"  # shows that a script that does get through is noticed
    control.write_text("<title>a</title><script>document.title='owned'</script>", encoding="utf-8")
    harmless = tmp_path / "harmless.html"
    harmless.write_text(a_hostile_report("name").to_html(), encoding="utf-8")
    dumps = {}
    with browser(tmp_path) as tab:
        for path in (page, control, harmless):
            tab.open(path, width=1280)
            dumps[path.stem] = tab.value("document.documentElement.outerHTML")
    assert "<title>owned</title>" in dumps["control"]
    assert "<title>owned" not in dumps["report"]
    shown = Structure(dumps["report"])
    assert "script" not in {tag for tag, _ in shown.tags}
    assert shown.tags == Structure(dumps["harmless"]).tags
