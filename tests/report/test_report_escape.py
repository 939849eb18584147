"""One function makes names harmless; everything else relies on it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from report_samples import HOSTILE

from unbackdoor.report.escape import short, visible, width
from unbackdoor.report.pages import environment

ANY_TEXT = st.text(st.characters(), max_size=60)  # lone surrogates too


@given(ANY_TEXT)
def test_visible_text_is_printable(text: str) -> None:
    assert visible(text).isprintable()
    assert visible(visible(text)) == visible(text)


@given(st.text(st.characters(categories=("L", "N", "P", "S", "M"), codec="ascii"), max_size=60))
def test_ordinary_text_stays(text: str) -> None:
    assert visible(text) == text


def test_codes_can_be_read() -> None:
    assert visible("a\x1b[0m\n\u202e\ud800\U000e0001") == "a\\x1b[0m\\x0a\\u202e\\ud800\\U000e0001"


@given(ANY_TEXT, st.integers(0, 80))
def test_short_text_fits(text: str, limit: int) -> None:
    shown = short(text, limit)
    assert shown.isprintable()
    assert width(shown) <= limit
    if width(visible(text)) <= limit:
        assert shown == visible(text)


def test_the_middle_is_left_out() -> None:
    assert short("features.denseblock4.denselayer16.conv2", 20) == "features...r16.conv2"


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_template_leaves_no_markup_and_nothing_unseen(name: str) -> None:
    templates = environment()
    for filters in ("", "|short(80)", "|whole", "|upper", "|join('')", "|map('whole')|join(', ')"):
        shown = templates.from_string("{{ name" + filters + " }}").render(name=name)
        assert not set("<>\"'") & set(shown)
        assert shown.isprintable()


def test_a_template_may_not_use_what_it_was_not_given() -> None:
    with pytest.raises(UndefinedError):
        environment().from_string("{{ forgotten }}").render()
