"""The record as JSON, and what the package needs to show it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from report_samples import HOSTILE, a_bare_report, a_hostile_report, a_layer, a_report

from unbackdoor.findings import Report


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


def parse(text: str) -> Any:
    return json.loads(text, parse_constant=refuse)


def test_the_package_shows_reports_without_torch() -> None:
    code = (
        "import sys; from unbackdoor.findings import Report; r = Report(action='scan', method='LPP', settings={});"
        "r.to_json(), r.to_text(), r.to_html(), r.to_sarif();"
        "import unbackdoor.report.figures;"
        "sys.exit(sorted({'torch', 'numpy', 'rich', 'click'} & set(sys.modules)) != [])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_json_keeps_any_name_and_is_ascii(name: str) -> None:
    text = a_hostile_report(name).to_json()
    assert text.isascii()
    assert all(char == "\n" or char.isprintable() for char in text)
    assert parse(text)["layers"][0]["path"] == name


def test_json_is_the_dict() -> None:
    report = a_report()
    assert parse(report.to_json()) == report.to_dict()


def test_equal_reports_give_equal_bytes() -> None:
    assert a_report().to_json() == a_report().to_json()


def test_the_totals_add_up() -> None:
    report = a_report(a_layer(channels=64, outliers=2, not_finite=(0,)), a_layer(channels=32, outliers=1))
    totals = report.to_dict()["totals"]
    assert totals["layers"] == 2
    assert totals["channels"] == 96
    assert totals["pruned"] == sum(len(layer.pruned) for layer in report.layers)
    assert totals["classifier_weights_cut"] == 2
    assert totals["complete"] is True


def test_the_version_comes_first() -> None:
    assert next(iter(parse(a_bare_report().to_json()))) == "schema_version"


def test_a_limit_that_is_switched_off_is_kept_as_a_word() -> None:
    settings = a_report(settings={"lower": -math.inf, "upper": math.inf, "u": [1.0, math.nan]}).to_dict()["settings"]
    assert settings == {"lower": "-inf", "upper": "inf", "u": [1.0, None]}


@given(st.lists(st.floats(), min_size=1, max_size=8), st.floats(), st.floats(), st.floats())
def test_nothing_that_is_not_finite_reaches_json(scores: list[float], mean: float, std: float, cut: float) -> None:
    layer = a_layer(scores=tuple(scores), mean=mean, std=std, lower=cut, upper=cut, factors=(cut,), scaled=(0,))
    text = a_report(layer, settings={"upper": cut}).to_json()
    assert text == a_report(layer, settings={"upper": cut}).to_json()
    parse(text)


@example([3.6e307], 0.0, 1.0, None)
@given(
    st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.floats(0, allow_infinity=False),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_every_output_stands_any_finite_numbers(
    scores: list[float | None], mean: float | None, std: float | None, cut: float | None
) -> None:
    missing = tuple(channel for channel, score in enumerate(scores) if score is None)
    layer = a_layer(
        scores=tuple(scores),
        mean=mean,
        std=std,
        lower=cut,
        band=cut,
        upper=cut,
        not_finite=missing,
        pruned_high=tuple(c for c in range(len(scores)) if c % 3 == 1 and c not in missing),
        pruned_low=(),
        scaled=tuple(c for c in range(len(scores)) if c % 3 == 2 and c not in missing),
        factors=(),
    )
    report = a_report(layer)
    for text in (report.to_json(), report.to_text(), report.to_html(), report.to_sarif()):
        assert "nan" not in re.sub("nan or infini(te|ty)", "", text.lower())


def test_a_report_is_complete_only_when_all_is_covered() -> None:
    report = a_report()
    assert report.complete
    assert not dataclasses.replace(report, not_covered=report.left_alone).complete
    assert isinstance(report, Report)
