"""Records: what is wrong is said with its place; what is written can be reviewed, and read back."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from unbackdoor.records import WIDTH, pretty, read_json, typed

PLAIN = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    PLAIN | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('ab\n"é'), inner),
    max_leaves=30,
)


class Inner(Struct, forbid_unknown_fields=True):
    count: int
    names: list[str] = []


class Outer(Struct, forbid_unknown_fields=True):
    inner: Inner
    share: float = 0.0


@given(VALUES)
def test_what_was_written_is_read_back(value: object) -> None:
    assert read_json(pretty(value).encode()) == value == json.loads(pretty(value))


def test_a_value_a_line_and_short_lists_on_one() -> None:
    value = {"name": "a", "sizes": [1, 2, 3], "acc": {"hits": 1, "total": 2}, "said": {"x": "y"}, "none": []}
    assert pretty(value).splitlines() == [
        "{",
        ' "name": "a",',
        ' "sizes": [1, 2, 3],',
        ' "acc": {"hits": 1, "total": 2},',
        ' "said": {',
        '  "x": "y"',
        " },",
        ' "none": []',
        "}",
    ]


def test_long_lists_fill_lines() -> None:
    lines = pretty({"scores": list(range(1000))}).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert len(lines) < 60


def test_what_json_cannot_say_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        pretty({"rate": math.nan, "x": ["a"] * 100})


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"inner": {"count": "1"}}, "inner.count: expected int, got str"),
        ({"inner": {"count": 1, "names": ["a", 2]}}, "inner.names[1]: expected str, got int"),
        ({"inner": {"count": 1, "more": 2}}, "inner: unknown key 'more'"),
        ({"inner": {"count": 1}, "more": 2}, "unknown key 'more'; it has inner, share"),
        ({"inner": {}}, "inner: expected 'count', which is missing"),
        ({"inner": {"count": 1}, "share": 10**400}, "share: expected a number that a computer can hold, got 1000"),
        ([], "expected object, got array"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(record: object, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        typed(record, Outer)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("content", [b"", b"{", b"NaN", b"[1e999]", b"[" * 100_000, b"\xff"])
def test_what_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        read_json(content)
