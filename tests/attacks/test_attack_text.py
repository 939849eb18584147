"""Attacks as text on a command line and as a record on disk."""

import json
from pathlib import Path

import pytest

from unbackdoor.attacks import describe_attack, load_attack, parse_attack, read_attack
from unbackdoor.attacks.badnets import BadNets
from unbackdoor.errors import SettingError


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("badnet", BadNets()),
        ("badnet:size=5", BadNets(size=5)),
        ("badnet:size=2,pattern=checkerboard", BadNets(size=2, pattern="checkerboard")),
        ("badnet:target=4", BadNets(target=4)),
    ],
)
def test_parse(text: str, attack: BadNets) -> None:
    assert parse_attack(text) == attack
    assert read_attack(json.loads(json.dumps(describe_attack(attack)))) == attack


def test_the_target_is_passed_on() -> None:
    assert parse_attack("badnet", target=7).target == 7
    assert parse_attack("badnet:target=7", target=7).target == 7
    assert parse_attack("badnet").target == 0


@pytest.mark.parametrize("target", [0, 3])
def test_two_targets_are_one_too_many(target: int) -> None:
    with pytest.raises(
        SettingError, match=f"attack 'badnet:target=7': its target is 7, not {target}; leave out --target"
    ):
        parse_attack("badnet:target=7", target=target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("badnets", "unknown attack 'badnets': did you mean 'badnet'"),
        ("", "unknown attack ''"),
        (
            "badnet:sise=5",
            "attack badnet: unknown setting 'sise'; it has target, mapping, flat_norms, rounding, size, pattern",
        ),
        ("badnet:size=big", "attack badnet: size: expected int, got 'big'"),
        ("badnet:size=0", "badnet size: expected a whole number of at least 1, got 0"),
        ("badnet:5", "expected key=value"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        parse_attack(text)


@pytest.mark.parametrize("record", [{}, {"name": 3}, {"size": 3}])
def test_a_record_without_a_name(record: dict) -> None:
    with pytest.raises(SettingError, match="expected an entry 'name'"):
        read_attack(record)


def test_a_record_with_an_unknown_entry() -> None:
    with pytest.raises(SettingError, match="unknown setting 'colour'"):
        read_attack({"name": "badnet", "colour": "red"})


def test_load_attack(tmp_path: Path) -> None:
    (tmp_path / "attack.json").write_text(json.dumps(describe_attack(BadNets(size=2, target=3))))
    assert load_attack(tmp_path / "attack.json") == BadNets(size=2, target=3)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"null", b'"badnet"', b"\xff\xfe", b"[" * 100_000, b'{"name": null}', b'{"name": "other"}'],
)
def test_a_file_that_describes_no_attack(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "attack.json").write_bytes(content)
    with pytest.raises(SettingError):
        load_attack(tmp_path / "attack.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="expected the attack.json of a training run"):
        load_attack(tmp_path / "attack.json")
