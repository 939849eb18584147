"""Progress of long work, where stderr is not a terminal."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from cli_runs import PACKAGED, run
from unbackdoor.cli import progress
from unbackdoor.cli.progress import bar


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines_of(steps: list[tuple[float, int, int, str]], *, quiet: bool = False) -> list[str]:
    """What is said of steps (seconds since the one before, done, total, note)."""
    clock, out = Clock(), io.StringIO()
    with contextlib.redirect_stderr(out), bar("ft", quiet=quiet, clock=clock) as update:
        for seconds, done, total, note in steps:
            clock.now += seconds
            update(done, total, note)
    return out.getvalue().splitlines()


def test_a_line_every_ten_seconds() -> None:
    steps = [(1.0, done, 2_000, "loss 0.3") for done in range(1, 26)]
    assert lines_of(steps) == [
        "ft: 10 of 2,000 (0%), loss 0.3; 10 s so far",
        "ft: 20 of 2,000 (1%), loss 0.3; 20 s so far",
    ]


def test_rare_news_are_told_when_they_come() -> None:
    steps = [(9.9, 1, 4, ""), (55.1, 2, 4, ""), (9.0, 3, 4, ""), (1.0, 3, 0, "")]
    assert lines_of(steps) == ["ft: 2 of 4 (50%); 1 min 05 s so far", "ft: 3 of 0; 1 min 15 s so far"]


def test_short_work_and_quiet_work_say_nothing() -> None:
    assert lines_of([(0.5, 1, 2, ""), (9.0, 2, 2, "")]) == []
    assert lines_of([(60.0, 1, 2, "")], quiet=True) == []


def test_a_note_cannot_break_the_line() -> None:
    (line,) = lines_of([(60.0, 1, 2, "a\x1b[31m\nb")])
    assert line.isprintable()


def test_many_files_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    done = run("scan", PACKAGED, PACKAGED, "--format", "json")
    assert [line.partition(",")[0] for line in done.err.splitlines()] == [
        "scanning: 0 of 2 (0%)",
        "scanning: 1 of 2 (50%)",
    ]
    assert run("scan", PACKAGED, PACKAGED, "--quiet").err == ""
    assert run("scan", PACKAGED).err == ""


def test_evaluating_detecting_and_defending_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    from unbackdoor import demo
    from unbackdoor.data import LabelledImages

    whole, _, _ = demo.load()
    few = LabelledImages(whole.images[::20], whole.labels[::20], whole.spec)
    monkeypatch.setattr("unbackdoor.data.load_dataset", lambda *_, **__: few)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    said = run("evaluate", PACKAGED, "--data", "cifar10").err
    assert said.startswith(f"evaluating: {len(few)} of {len(few)} (100%); ")
    words = ("--data", "cifar10", "--method")
    said = run("defend", PACKAGED, *words, "ft:epochs=1", "--clean", "20", "--evaluate").err
    assert ["measuring before" in said, "fine-tuning: loss" in said, "measuring after" in said] == [True] * 3
    said = run("detect", PACKAGED, *words, "nc:steps=1,batch_size=2,success=0.0", "--images", "4").err
    assert "nc: 1 of 10 (10%), class 0: success" in said
