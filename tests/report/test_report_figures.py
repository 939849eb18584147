"""The blocks for pages that show more than a report."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from report_samples import HOSTILE, Structure, part

from unbackdoor.report.figures import Column, Example, Gallery, Picture, Rates, Row, curve

PIXEL = "data:image/png;base64,iVBORw0KGgo="
COLUMNS = (
    Column(name="ACC", meaning="test images answered rightly", better="higher"),
    Column(name="ASR", meaning="stamped images answered with the attacker's class", better="lower"),
)


def gallery(examples: list[Example], *, models: list[str], target: str) -> str:
    return part("figures.html", "gallery", Gallery(examples=examples, models=models, target=target))


def rates_table(columns: Sequence[Column], rows: list[Row], *, caption: str) -> str:
    return part("figures.html", "rates", Rates(columns=columns, rows=rows, caption=caption))


def example(*, truth: str = "cat", image: str = PIXEL, answers: tuple[str, ...] = ("plane", "cat")) -> Example:
    return Example(truth=truth, pictures=(Picture(image=image, caption="with the trigger", answers=answers),))


def test_rates_come_with_their_counts() -> None:
    page = rates_table(COLUMNS, [Row(name="as received", counts=((9_300, 10_000), None))], caption="test set")
    text = Structure(page).text
    assert "93.0 %" in text
    assert "9,300 of 10,000" in text
    assert "not measured" in text
    assert "higher is better" in text
    assert "lower is better" in text


def test_answers_are_marked_in_words_too() -> None:
    text = Structure(gallery([example(answers=("plane", "cat", "dog"))], models=["a", "b", "c"], target="plane")).text
    assert "plane (wrong: the attacker's class)" in text
    assert "cat (right)" in text
    assert "dog (wrong)" in text


@pytest.mark.parametrize(
    "image",
    ["https://example.org/a.png", "javascript:alert(1)", 'data:image/png;base64,AA"onerror="x', "data:text/html,x"],
)
def test_only_images_inside_the_page_are_shown(image: str) -> None:
    with pytest.raises(ValueError, match="data URI"):
        gallery([example(image=image)], models=["a", "b"], target="plane")


def test_a_curve_shows_every_value_and_the_gaps() -> None:
    found = curve((1.0, None, 0.5, 0.0), "loss")
    assert found.words == "loss: 1 first, 0 last, from 0 to 1"
    assert found.pieces == ["0.00,0.00 0.00,0.00", "66.67,20.00 100.00,40.00"]  # a line of one point shows nothing
    assert curve((0.5,), "loss").pieces == ["0.00,0.00 0.00,0.00"]
    shown = part("figures.html", "curve", curve((None, None), "loss"))
    assert "loss: no finite value" in shown
    assert "<svg" not in shown


def test_every_model_must_have_answered() -> None:
    with pytest.raises(ValueError):
        gallery([example(answers=("cat",))], models=["a", "b"], target="plane")


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_names_stay_text(name: str) -> None:
    def both(name: str) -> str:
        picture = Picture(image=PIXEL, caption=name, answers=(name + "1",))
        shown = gallery([Example(truth=name, pictures=(picture,))], models=[name], target="x")
        rate = Column(name=name, meaning=name, better="lower")
        return shown + rates_table([rate], [Row(name=name, detail=name or "x", counts=((1, 2),))], caption=name)

    assert Structure(both(name)).tags == Structure(both("name")).tags
