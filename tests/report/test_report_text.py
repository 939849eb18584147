"""The report for terminals."""

from __future__ import annotations

import re
import time

import pytest
from report_samples import (
    HOSTILE,
    a_bare_report,
    a_hostile_report,
    a_huge_report,
    a_layer,
    a_report,
    a_report_without_findings,
)

from unbackdoor.findings import Remark, Report
from unbackdoor.report.escape import width


def lines_of(report: Report) -> list[str]:
    text = report.to_text()
    assert text.endswith("\n")
    return text[:-1].split("\n")


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_hostile_names_stay_on_their_line(name: str) -> None:
    for line in lines_of(a_hostile_report(name)):
        assert line.isprintable()
        assert width(line) <= 100
    a_hostile_report(name).to_text().encode()  # no lone surrogate is left


def test_it_says_what_was_read_and_how() -> None:
    text = a_report().to_text()
    for part in ("models/resnet18.safetensors", "ab" * 32, "resnet18", "LPP", "upper=3", "lower=-inf", "folded"):
        assert part in text
    assert "unused" not in text


def test_a_layer_has_its_row_and_its_outliers_by_number() -> None:
    layer = a_layer(outliers=2)
    text = a_report(layer).to_text()
    row = next(line for line in text.splitlines() if line.startswith("layer1.0.conv1 "))
    assert re.search(rf"Conv2d\s+64\s+yes, fx .* {len(layer.pruned_high)}\s+0\s+{len(layer.scaled)}$", row)
    for channel in layer.pruned_high:
        assert re.search(rf"\b{channel} \(\+\d", text)


def test_many_layers_without_findings_become_one_line_and_the_totals_hold() -> None:
    quiet = [a_layer(f"quiet{index}", outliers=0, z_upper=6.0, z_band=0.5, seed=1) for index in range(30)]
    text = a_report(a_layer("loud", outliers=1), *quiet).to_text()
    assert "quiet7" not in text
    assert re.search(r"^loud ", text, re.MULTILINE)
    assert re.search(r"^30 other layers +1,920 ", text, re.MULTILINE)
    assert re.search(r"^total +1,984 ", text, re.MULTILINE)


def test_equal_layers_are_counted_each() -> None:
    layer = a_layer("twin", outliers=0, z_upper=6.0, z_band=0.5)
    text = a_report(a_layer("loud"), *[layer] * 20).to_text()
    assert "20 other layers" in text


def test_nothing_found_is_not_called_more_than_that() -> None:
    text = a_report_without_findings().to_text()
    assert "No outlier channel was found. This does not prove that the model has no backdoor." in text


def test_nothing_scored_is_not_nothing_found() -> None:
    text = a_bare_report().to_text()
    assert "No layer was scored" in text
    assert "No outlier channels were found" not in text


def test_what_is_not_covered_comes_before_the_findings() -> None:
    remarks = tuple(Remark(f"block{index}.conv", "Conv2d", "two norms read it") for index in range(9))
    text = a_report(not_covered=remarks).to_text()
    assert "INCOMPLETE" in text
    assert text.index("two norms read it") < text.index("outlier channels in")
    assert "block0.conv" in text
    assert "and 5 more" in text


def test_channels_without_a_score_are_named() -> None:
    text = a_report(a_layer(not_finite=(3, 9))).to_text()
    assert "NaN or infinity" in text
    assert re.search(r"layer1\.0\.conv1: 3, 9$", text, re.MULTILINE)


def test_outliers_that_cannot_be_cut_are_named() -> None:
    text = a_report(a_layer("conv1", pruned_high=(), immutable=(5, 7))).to_text()
    assert "2 outliers that cannot be pruned" in " ".join(text.split())
    assert any("conv1: " in line and "5 (" in line and "7 (" in line for line in text.splitlines())


def test_the_class_is_a_guess() -> None:
    assert "class: 3 (a guess, not a verdict)" in a_report().to_text()


def test_only_a_repair_says_it_changed_something() -> None:
    scan, repair = (" ".join(a_report(action=action).to_text().split()) for action in ("scan", "repair"))
    assert "Nothing was changed" in scan
    assert "would be set to zero" in scan
    assert "were pruned" in repair
    assert "were set to zero" in repair


def test_a_note_that_many_layers_share_is_said_once() -> None:
    layers = [a_layer(f"conv{index}", notes=("the lower threshold cannot fire",)) for index in range(10)]
    assert a_report(*layers).to_text().count("the lower threshold cannot fire") == 1


@pytest.mark.parametrize("report", [a_report(), a_bare_report(), a_report_without_findings()])
def test_no_model_is_called_safe_or_clean(report: Report) -> None:
    assert not re.search(r"\b(safe|clean)\b", report.to_text(), re.IGNORECASE)


def test_a_huge_report_stays_readable() -> None:
    report = a_huge_report()
    start = time.perf_counter()
    lines = lines_of(report)
    assert time.perf_counter() - start < 10
    assert len(lines) < 300
