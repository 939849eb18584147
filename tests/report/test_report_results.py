"""Rates, differences and detections as plain values, and as text."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from report_samples import HOSTILE, a_report

from unbackdoor.findings import (
    ClassFinding,
    Defended,
    Detection,
    Difference,
    Evaluation,
    Rate,
    Remark,
    effectiveness,
)
from unbackdoor.report import render
from unbackdoor.report.documents import together
from unbackdoor.report.results import differences, rates, rates_line

BEFORE = Evaluation(Rate(90, 100), Rate(80, 100), Rate(10, 100))
AFTER = Evaluation(Rate(80, 100), Rate(20, 100), Rate(60, 100))


def a_detection(name: str = "nc", **changes: object) -> Detection:
    classes = (
        ClassFinding(label=0, suspicious=True, values={"norm": 1.25}, images=(3, 4)),
        ClassFinding(label=1, suspicious=False, values={"norm": None}),
    )
    found = {"detector": name, "settings": {"steps": 200}, "classes": classes, "images": 1500, "digest": "ab"}
    return Detection(**{**found, **changes})  # type: ignore[arg-type]


def test_findings_know_no_renderer() -> None:
    code = "import sys, unbackdoor.findings; print([m for m in sys.modules if 'report' in m or 'torch' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['unbackdoor.findings.report']\n"


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="form: expected one of text, html, sarif, got 'pdf'"):
        render(a_report(), "pdf")
    with pytest.raises(ValueError, match="form: expected one of text, got 'html'"):
        render(a_detection(), "html")


def test_der_of_two_evaluations() -> None:
    # [max(0, 0.8 - 0.2) - max(0, 0.9 - 0.8) + 1] / 2
    assert effectiveness(BEFORE, AFTER) == pytest.approx(0.75)
    assert effectiveness(BEFORE, BEFORE) == 0.5
    assert effectiveness(None, AFTER) is None
    assert effectiveness(BEFORE, Evaluation(Rate(1, 2))) is None
    assert effectiveness(BEFORE, Evaluation(Rate(1, 2), Rate(0, 0))) is None


def test_the_record_of_a_defence() -> None:
    record = Defended(a_report(action="defend"), BEFORE, AFTER, 1.23456).record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["method"] == {"name": "LPP", "upper": 3.0, "lower": "-inf", "band": 1.5} | {
        "norm_factor": "folded",
        "unused": None,
    }
    assert (record["der"], record["seconds"]) == (pytest.approx(0.75), 1.235)
    assert record["before"]["asr"] == {"hits": 80, "total": 100, "value": 0.8}
    assert Defended(a_report(), None, None, 0.0).record()["der"] is None


def test_rates_come_with_their_counts() -> None:
    assert rates(BEFORE).splitlines() == [
        "ACC    90.00%  (90 of 100)",
        "ASR    80.00%  (80 of 100)",
        "RA     10.00%  (10 of 100)",
    ]
    assert rates(dataclasses.replace(BEFORE, recall=Rate(7, 8))).splitlines()[2:] == [
        "RA       10.00%  (10 of 100)",
        "RECALL   87.50%  (7 of 8)",
    ]
    assert rates(Evaluation(Rate(0, 0))) == "ACC      none  (0 of 0)\n"
    assert rates_line(Evaluation(Rate(1, 2), Rate(0, 0), Rate(1, 4))) == "ACC 50.00% (1 of 2)  RA 25.00% (1 of 4)"


def test_differences_are_a_line_each() -> None:
    found = [
        Difference("conv", "values", tuple(range(20)), 32),
        Difference("a\x1b[31m\nb", "shape", detail="(1,) and (2,)"),
        Difference("gone", "only in A"),
    ]
    first, second, third, last = differences(found).splitlines()
    assert first == f"conv: 20 of 32 channels: {', '.join(map(str, range(16)))}, ..."
    assert second == "a\\x1b[31m\\x0ab: shape (1,) and (2,)"
    assert third == "gone: only in A"
    assert last == "3 tensors differ"
    assert differences([]) == "no difference\n"


def test_a_detection_names_its_classes_and_is_no_verdict() -> None:
    text = a_detection().to_text()
    assert "unbackdoor detect: a model in memory\n  nc  steps=200\n  1,500 images, SHA-256 ab\n" in text
    assert "Suspicious: class 0. This is a reason to look, not a proof." in text
    assert [line.split() for line in text.splitlines()[-3:]] == [
        ["class", "norm"],
        ["0", "1.25", "suspicious"],
        ["1", "-"],
    ]
    assert (
        "No class is suspicious. This does not prove that the model has no backdoor."
        in a_detection(classes=()).to_text()
    )


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_detection_shows_any_name(name: str) -> None:
    found = a_detection(name, source=name, settings={name: name}, notes=(name,))
    assert all(char == "\n" or char.isprintable() for char in found.to_text())
    assert found.to_json().isascii()
    assert json.loads(found.to_json())["notes"] == [name]


@pytest.mark.parametrize("form", ["json", "sarif"])
def test_several_files_are_one_document(form: str) -> None:
    one, two = a_report(source="a.pt"), a_report(source="b.pt", not_covered=(Remark("conv", "Conv2d", "why"),))
    single = json.loads(together([one], [], form, single=True))
    assert single == json.loads(one.to_json() if form == "json" else one.to_sarif())
    whole = json.loads(together([one, two], [("c.pt", "not readable")], form, single=False))
    if form == "json":
        assert [report["source"] for report in whole["reports"]] == ["a.pt", "b.pt"]
        assert whole["failed"] == [{"source": "c.pt", "error": "not readable"}]
    else:
        assert len(whole["runs"]) == 3
        assert whole["version"] == "2.1.0"
    assert together([one, two], [], "text", single=False) == one.to_text() + "\n" + two.to_text()
