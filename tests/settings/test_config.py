"""Settings as text."""

import contextlib
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbackdoor.errors import SettingError
from unbackdoor.settings import build, read_options, write_options


@dataclass(frozen=True, kw_only=True)
class Knobs:
    size: int = 3
    ratio: float = 0.5
    name: str = "white"
    loud: bool = False


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("size=3", {"size": 3}),
        ("size=3,pattern=white", {"size": 3, "pattern": "white"}),
        ("a=true,b=false", {"a": True, "b": False}),
        ("a=True", {"a": "True"}),
        ("a=-1.5e-3", {"a": -0.0015}),
        ("a=", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("a=1,", {"a": 1}),
    ],
)
def test_read_options(text: str, options: dict) -> None:
    result = read_options(text)
    assert result == options
    assert [type(value) for value in result.values()] == [type(value) for value in options.values()]


@pytest.mark.parametrize("text", ["size", "=3", "si ze=3", "3=3", "size:3", "\x1b[31m=1"])
def test_what_is_not_key_value_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="expected key=value"):
        read_options(text)


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(SettingError, match="size is given twice"):
        read_options("size=3,size=5")


words = st.text(st.characters(codec="utf-8", exclude_characters=",", exclude_categories=["Z", "C"]), max_size=9)
values = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), words)


@given(st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]*", fullmatch=True), values))
def test_write_is_the_inverse_of_read(options: dict) -> None:
    written = write_options(options)
    again = read_options(written)
    assert list(again) == list(options)
    assert write_options(again) == write_options(read_options(write_options(again)))
    for key, value in options.items():
        if not isinstance(value, str):  # a string may look like a number
            assert (again[key], type(again[key])) == (value, type(value))


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(SettingError):
        assert isinstance(read_options(text), dict)


def test_build() -> None:
    assert build(Knobs, "knobs", {}) == Knobs()
    whole = build(Knobs, "knobs", {"size": 5, "ratio": 1})
    assert whole == Knobs(size=5, ratio=1.0)
    assert [type(value) for value in (whole.size, whole.ratio)] == [int, float]


@pytest.mark.parametrize("value", [2**53, 10**400])
def test_whole_numbers_that_no_float_holds_are_refused(value: int) -> None:
    with pytest.raises(SettingError, match=r"^knobs: ratio: expected float, got \d+$"):
        build(Knobs, "knobs", {"ratio": value})


def test_an_unknown_setting_lists_the_known_ones() -> None:
    with pytest.raises(SettingError, match=r"^knobs: unknown setting 'sise'; it has size, ratio, name, loud$"):
        build(Knobs, "knobs", {"sise": 5})


@pytest.mark.parametrize(
    "options",
    [{"size": 3.0}, {"size": True}, {"size": "3"}, {"ratio": True}, {"ratio": "x"}, {"name": 3}, {"loud": 1}],
)
def test_a_setting_of_another_type_is_refused(options: dict) -> None:
    with pytest.raises(SettingError, match="knobs: .*expected (int|float|str|bool), got"):
        build(Knobs, "knobs", options)
