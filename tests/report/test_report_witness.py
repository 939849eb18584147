"""What the witnesses say, in every form, alone and in the report of a scan."""

import dataclasses
import json
import re

import pytest
from report_samples import HOSTILE, Structure, a_report

from unbackdoor.findings import ClassWitness, PushingChannel, StampedSurrogate, Witness
from witness_samples import PIXEL, a_witness, cannot_tell, without_a_suspect

SAMPLES = {"suspect": a_witness(), "none": without_a_suspect(), "cannot tell": cannot_tell(), "many": a_witness(100)}


def hostile(name: str) -> Witness:
    return a_witness(
        source=name,
        arch=name,
        notes=(name,),
        missing={name: name},
        channels=(PushingChannel(layer=name, channel=1, label=2, moved=0.5),),
    )


@pytest.mark.parametrize("found", SAMPLES.values(), ids=SAMPLES)
def test_every_form_holds(found: Witness) -> None:
    for text in (found.to_text(), a_report(witness=found).to_text()):
        assert max(map(len, text.splitlines())) <= 100
        assert not re.search(r"\b(safe|clean)\b", text)
    for page in (found.to_html(), a_report(witness=found).to_html()):
        structure = Structure(page)
        assert not structure.open
        assert not re.search(r"\b(safe|clean)\b", structure.text)
        assert not {tag for tag, _ in structure.tags} & {"script", "link", "iframe", "object", "embed", "form"}
    assert found.to_json() == dataclasses.replace(found).to_json()
    assert json.loads(found.to_json())["p"] == found.p


def test_a_suspect_is_named_in_words() -> None:
    text = a_witness().to_text()
    assert "SUSPECTED: Class 3 is suspected; after it 5: it stands out" in text
    assert "p = 0.0476, the smallest possible with 20 honest networks" in " ".join(text.split())
    assert "class 3: a mask of 6.2 pixels, sends 95% of the generated images there" in text
    assert "layer4.1.conv2[7] to class 3: 88%" in text
    assert "reconstruction could not look: no trigger moved 90%" in text
    assert "a reason to look, not a proof" in " ".join(text.split())
    assert a_witness().suspect == 3
    assert a_witness().ranked[0].label == 3
    assert a_witness().ranked[0].witness == "stimulation"


@pytest.mark.parametrize(
    ("standard", "first"),
    [
        ({"head": (None, 1.0, 2.0), "channels": (1.5, 3.0, None)}, 1),
        ({"head": (2.0, 2.0)}, 0),
    ],
)
def test_the_first_class_has_the_largest_z(standard: dict[str, tuple[float | None, ...]], first: int) -> None:
    columns = enumerate(zip(*standard.values(), strict=True))
    classes = tuple(
        ClassWitness(label=label, scores={}, standard=dict(zip(standard, column, strict=True)), values={})
        for label, column in columns
    )
    assert dataclasses.replace(a_witness(), classes=classes).ranked[0].label == first


def test_no_suspect_proves_nothing() -> None:
    assert "does not prove that the model has no backdoor" in " ".join(without_a_suspect().to_text().split())
    assert "The witnesses cannot tell: no witness could look" in cannot_tell().to_text()
    assert without_a_suspect().suspect is None


def test_the_page_shows_pictures_and_folds_classes() -> None:
    page = a_witness(100).to_html()
    assert page.count(PIXEL) == 3
    assert "90 other classes" not in page  # 60 are shown at most
    assert "50 other classes" in page
    assert "and 40 more; the JSON report has all" in page
    with pytest.raises(ValueError, match="expected a base64 data URI"):
        bad = StampedSurrogate(before="javascript:alert(1)", after=PIXEL, answer_before=0, answer_after=1)
        found = a_witness()
        a_witness(triggers=(dataclasses.replace(found.triggers[0], pictures=(bad,)),)).to_html()


@pytest.mark.parametrize("name", [name for name in HOSTILE.values() if name], ids=[k for k in HOSTILE if k != "empty"])
def test_hostile_names(name: str) -> None:
    plain = hostile("name")
    page = hostile(name).to_html()
    assert Structure(page).tags == Structure(plain.to_html()).tags
    for text in (page, hostile(name).to_text()):
        assert all(char == "\n" or char.isprintable() for char in text)


def test_sarif_has_a_result_a_suspect() -> None:
    (run,) = json.loads(a_report(witness=a_witness()).to_sarif())["runs"]
    results = [one for one in run["results"] if one["ruleId"] == "suspected-class"]
    assert [one["properties"]["class"] for one in results] == [3, 5]
    assert results[0]["level"] == "error"
    assert results[0]["message"]["text"].startswith("Class 3 is suspected")
    assert results[0]["locations"][0]["logicalLocations"] == [{"fullyQualifiedName": "class 3", "kind": "class"}]
    assert run["invocations"][0]["executionSuccessful"] is True


def test_sarif_has_a_note_on_a_class_that_was_closed_on_a_weak_suspicion() -> None:
    (run,) = json.loads(a_report(witness=a_witness(suspects=()), doubtful=3).to_sarif())["runs"]
    (result,) = [one for one in run["results"] if "class" in one["ruleId"]]
    assert (result["ruleId"], result["level"], result["properties"]["class"]) == ("closed-class", "note", 3)
    assert result["message"]["text"].startswith("Class 3 is not suspected. It stands out most (z ")
    (run,) = json.loads(a_report(witness=a_witness(suspects=())).to_sarif())["runs"]
    assert not any("class" in one["ruleId"] for one in run["results"])


@pytest.mark.parametrize("changes", [{"witness": cannot_tell()}, {"no_witness": "the network fails"}])
def test_a_scan_that_cannot_tell_is_incomplete(changes: dict) -> None:
    report = a_report(**changes)
    assert not report.complete
    (run,) = json.loads(report.to_sarif())["runs"]
    assert run["invocations"][0]["executionSuccessful"] is False
    (told,) = run["invocations"][0]["toolExecutionNotifications"]
    assert told["descriptor"]["id"] == "cannot-tell"
    assert not Structure(report.to_html()).open
    assert report.cannot_tell in " ".join(report.to_text().split()) or "cannot tell" in report.to_text()


def test_json_says_only_what_was_asked() -> None:
    assert "witness" not in json.loads(a_report().to_json())
    assert json.loads(a_report(witness=a_witness()).to_json())["witness"]["suspects"] == [3, 5]
    assert a_report(witness=a_witness()).complete
