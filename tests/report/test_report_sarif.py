"""The report as SARIF."""

from __future__ import annotations

import dataclasses
import json
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from report_samples import HOSTILE, a_bare_report, a_hostile_report, a_layer, a_report, a_report_without_findings

from unbackdoor.findings import Remark, Report
from unbackdoor.report.sarif import file_uri, render_unread


def run_of(report: Report) -> Any:
    document = json.loads(report.to_sarif())
    assert document["version"] == "2.1.0"
    (run,) = document["runs"]
    return run


def places(run: Any, rule: str) -> list[str]:
    return [
        result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"]
        for result in run["results"]
        if result["ruleId"] == rule
    ]


def test_each_kind_of_finding_has_its_rule_and_place() -> None:
    layer = a_layer(
        "conv1", scores=(1.0, 9.0, 0.0, 3.0, None), pruned_high=(1,), pruned_low=(2,), scaled=(3,), not_finite=(4,)
    )
    run = run_of(a_report(layer, not_covered=(Remark("conv2", "Conv2d", "no norm"),)))
    assert places(run, "outlier-high") == ["conv1[1]"]
    assert places(run, "outlier-low") == ["conv1[2]"]
    assert places(run, "near-outlier") == ["conv1[3]"]
    assert places(run, "not-finite") == ["conv1[4]"]
    assert places(run, "not-covered") == ["conv2"]
    assert run["properties"]["complete"] is False


def test_outliers_that_cannot_be_cut_are_findings_too() -> None:
    layer = a_layer("conv1", scores=(1.0, 9.0, 0.0, 1.0, None), pruned_high=(), pruned_low=(), scaled=(), factors=())
    run = run_of(a_report(dataclasses.replace(layer, mean=1.0, immutable=(1, 2, 4))))
    assert places(run, "outlier-high") == ["conv1[1]"]
    assert places(run, "outlier-low") == ["conv1[2]"]
    assert places(run, "not-finite") == ["conv1[4]"]


def test_results_refer_to_their_rule_and_to_the_file() -> None:
    run = run_of(a_report())
    rules = run["tool"]["driver"]["rules"]
    assert run["results"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert rules[result["ruleIndex"]]["defaultConfiguration"]["level"] == result["level"]
        location = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert (
            run["artifacts"][location["index"]]["location"]["uri"] == location["uri"] == "models/resnet18.safetensors"
        )
    assert run["artifacts"][0]["hashes"]["sha-256"] == "ab" * 32


def test_findings_can_be_told_apart_although_they_share_a_file() -> None:
    prints = [result["partialFingerprints"]["primaryLocationLineHash"] for result in run_of(a_report())["results"]]
    assert len(prints) == len(set(prints))


def test_nothing_found_gives_no_results_and_says_what_that_means() -> None:
    run = run_of(a_report_without_findings())
    assert run["results"] == []
    assert "does not prove that the model has no backdoor" in run["properties"]["summary"]
    assert "No layer was scored" in run_of(a_bare_report())["properties"]["summary"]


def test_equal_reports_give_equal_bytes() -> None:
    assert a_report().to_sarif() == a_report().to_sarif()


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_hostile_names_are_plain_text(name: str) -> None:
    text = a_hostile_report(name).to_sarif()
    assert text.isascii()

    def strings(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [*value, *(found for item in value.values() for found in strings(item))]
        if isinstance(value, list):
            return [found for item in value for found in strings(item)]
        return [value] if isinstance(value, str) else []

    found = strings(json.loads(text))
    assert all(string.isprintable() for string in found)
    assert all(len(string) < 4_000 for string in found if string != file_uri(name))


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("a/b.pt", "a/b.pt"),
        ("/srv/my models/ä.pt", "file:///srv/my%20models/%C3%A4.pt"),
        ("C:\\models\\a b.pt", "file:///C:/models/a%20b.pt"),
        ("100%#?.pt", "100%25%23%3F.pt"),
        ("javascript:alert(1)", "javascript%3Aalert%281%29"),
        ("a\nb", "a%0Ab"),
        ("caf\udce9.pt", "caf%E9.pt"),
        ("\ud800.pt", "%ED%A0%80.pt"),
    ],
)
def test_a_path_becomes_a_uri(path: str, uri: str) -> None:
    assert file_uri(path) == uri
    assert unquote_to_bytes(uri)


def test_what_was_not_covered_is_a_notification_and_no_success() -> None:
    remarks = (*(Remark(f"conv{i}", "Conv2d", "no norm") for i in range(14)), Remark("x", "", "not traced"))
    run = run_of(a_report(a_layer(), not_covered=remarks))
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    first, second = invocation["toolExecutionNotifications"]
    assert first["descriptor"]["id"] == "not-covered"
    assert first["message"]["text"].startswith("Not covered: Conv2d conv0, conv1, ")
    assert first["message"]["text"].endswith("conv11 and 2 more: no norm")
    assert second["message"]["text"] == "Not covered: x: not traced"
    known = {descriptor["id"] for descriptor in run["tool"]["driver"]["notifications"]}
    assert {first["descriptor"]["id"], second["descriptor"]["id"]} <= known
    for notification in (first, second):
        assert notification["level"] in {"none", "note", "warning", "error"}
        (location,) = notification["locations"]
        assert location["physicalLocation"]["artifactLocation"]["index"] == 0


def test_no_layer_scored_is_no_success_either() -> None:
    run = run_of(dataclasses.replace(a_bare_report(), layers=(), not_covered=(), stages=()))
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert "No layer was scored" in invocation["toolExecutionNotifications"][0]["message"]["text"]


def test_a_whole_report_is_a_success() -> None:
    run = run_of(a_report(a_layer(), not_covered=()))
    assert run["invocations"] == [{"executionSuccessful": True}]


def test_a_file_that_could_not_be_read() -> None:
    (run,) = json.loads(render_unread("a b.pt", "not a checkpoint"))["runs"]
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    (notification,) = invocation["toolExecutionNotifications"]
    assert (notification["level"], notification["message"]["text"]) == ("error", "not a checkpoint")
    assert (run["results"], run["artifacts"][0]["location"]["uri"]) == ([], "a%20b.pt")
