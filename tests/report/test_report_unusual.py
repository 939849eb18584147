"""That more is cut than usual is said in words, in every kind of report, and only then."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from report_samples import a_layer, a_report

from unbackdoor.findings import Report
from unbackdoor.findings.unusual import MOST_CHANNELS, MOST_LAYERS

MEASURED = Path(__file__).parents[2] / "studies" / "cut_shares.json"


def report_of(hit: int, *, layers: int, channels: int = 100, each: int = 1, **changes: object) -> Report:
    """So many layers with `each` pruned channels, of so many layers."""
    plain = dataclasses.replace(
        a_layer(channels=channels, outliers=0), pruned_high=(), pruned_low=(), not_finite=(), scaled=(), factors=()
    )
    found = [
        dataclasses.replace(plain, path=f"conv{i}", pruned_high=tuple(range(each)) if i < hit else ())
        for i in range(layers)
    ]
    return dataclasses.replace(a_report(*found), **{"method": "lpp", "action": "scan", "not_covered": (), **changes})


def test_the_limits_are_the_largest_that_were_measured() -> None:
    largest = json.loads(MEASURED.read_text())["largest"]
    assert pytest.approx(max(shares["layers"] for shares in largest.values())) == MOST_LAYERS
    assert pytest.approx(max(shares["channels"] for shares in largest.values())) == MOST_CHANNELS


def test_many_layers() -> None:
    assert report_of(25, layers=50).unusual is None
    warning = report_of(26, layers=50).unusual
    assert warning is not None
    assert warning.startswith("A repair would prune 0.5% of all channels, in 26 of 50 layers. In the networks measured")
    assert "it was at most 1.42% of the channels and 50% of the layers. The outliers may not come from a" in warning
    warning = str(report_of(26, layers=50, action="repair").unusual)
    assert warning.startswith("The repair pruned")
    assert "the repair may have cost accuracy" in warning


def test_many_channels() -> None:
    assert report_of(5, layers=50, each=14).unusual is None
    assert "1.5% of all channels, in 5 of 50 layers" in str(report_of(5, layers=50, each=15).unusual)


def test_a_few_channels_of_a_small_network_say_nothing() -> None:
    assert report_of(3, layers=3, channels=10, each=3).unusual is None
    assert report_of(3, layers=3, channels=10, each=4).unusual is not None


def test_other_methods_were_not_measured() -> None:
    assert report_of(50, layers=50, method="fp", action="defend").unusual is None
    assert report_of(50, layers=50, method="clp").unusual is not None
    assert dataclasses.replace(report_of(0, layers=1), layers=()).unusual is None


def test_every_kind_of_report_says_it() -> None:
    report, ordinary = report_of(30, layers=50), report_of(3, layers=50)
    said = report.unusual
    assert said is not None
    assert json.loads(report.to_json())["unusual"] == said
    assert json.loads(ordinary.to_json())["unusual"] is None
    assert "UNUSUAL: A repair would prune 0.6% of all channels, in 30 of 50 layers" in report.to_text()
    assert all(len(line) <= 100 for line in report.to_text().splitlines())
    assert (
        '<section class="alarm"><h2><span aria-hidden="true">!</span> Unusually many outliers</h2>' in report.to_html()
    )
    (run,) = json.loads(report.to_sarif())["runs"]
    (notification,) = run["invocations"][0]["toolExecutionNotifications"]
    assert (notification["descriptor"]["id"], notification["message"]["text"]) == ("unusual-cut", said)
    assert run["invocations"][0]["executionSuccessful"] is True
    for text in (ordinary.to_text(), ordinary.to_html(), ordinary.to_sarif()):
        assert "rdinary" not in text.partition("<body>")[2]
        assert "toolExecutionNotifications" not in text


def test_it_is_no_verdict() -> None:
    said = str(report_of(30, layers=50).unusual)
    assert not any(word in said for word in (" safe", " clean", "is backdoored"))
