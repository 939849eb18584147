"""What is an easy way, by hand."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from unbackdoor.defender import ways_in
from unbackdoor.defender.channel_triggers import ChannelTrigger
from unbackdoor.defender.stimulation import Place
from unbackdoor.defender.triggers import Trigger
from unbackdoor.defender.ways_in import (
    BATCH,
    SEARCHES,
    Channel,
    Stamp,
    Together,
    Way,
    easy_together,
    regained,
    search,
    success,
)


def test_channels_together_are_easy_below_what_other_classes_need() -> None:
    def easy(size: float, usual: float) -> bool:
        found = easy_together(ChannelTrigger(0, (), (), size), usual)
        return bool(found)

    assert easy(11.9, 20.0)  # .6 of 20 is 12
    assert not easy(12.1, 20.0)
    assert easy(100.0, math.inf)  # no other class can be reached
    assert not easy(math.inf, math.inf)


def test_a_size_that_no_other_class_has_is_said_in_words() -> None:
    trigger = ChannelTrigger(0, (Place("norm", "conv", 2, 1),), (torch.tensor([0.0, 3.0]),), 3.0)
    found = "channel 1 of conv alone, of size 3"
    assert str(Together(trigger, 20.0)) == f"{found}; other classes need 20"
    assert str(Together(trigger, math.inf)) == f"{found}; none was found that reaches other classes"


def test_what_is_regained_is_told_in_factors() -> None:
    def found(size: float) -> list[Trigger]:
        form = SEARCHES[0]((3, 4, 4), torch.Generator(), torch.device("cpu"))
        return [Trigger(1, form, size, 1.0), *(Trigger(1, None, math.inf, 0.0) for _ in SEARCHES[1:])]

    usual = dict.fromkeys(SEARCHES, 32.0)
    assert regained(found(2), found(8), usual) == pytest.approx(0.5)  # two of four factors of two
    assert regained(found(2), found(1), usual) == 0
    assert regained(found(2), found(64), usual) == 1
    assert regained(found(20), found(30), usual) is None  # it was not easy
    assert regained(found(2), found(8), dict.fromkeys(SEARCHES, math.inf)) is None
    none = [Trigger(1, None, math.inf, 0.0) for _ in SEARCHES]
    assert regained(found(2), none, usual) == 1


class _Moves:
    """A way that moves so many of ten images, and more if it is shown stronger."""

    def __init__(self, moved: int, stronger: int | None = None) -> None:
        self._moved, self._stronger = moved, moved if stronger is None else stronger

    def logits(self, shown: Any, plain: Any, pixels: torch.Tensor, strength: Any = None) -> torch.Tensor:
        assert not len(plain)
        assert len(strength) == len(pixels)
        moved = self._stronger if bool((strength > 1).all()) else self._moved
        return torch.eye(2)[(torch.arange(len(pixels)) < moved).long()]


class _Trigger(_Moves, Stamp):
    __init__ = _Moves.__init__


class _Fires(_Moves, Channel):
    __init__ = _Moves.__init__


def _left(triggers: Sequence[int], channels: Sequence[int]) -> float:
    ways: list[Way] = [*map(_Trigger, triggers), *map(_Fires, channels)]
    return success(cast(Any, None), ways, torch.zeros(10, 1, 1, 1), 1)


def test_many_channels_do_not_outvote_three_triggers() -> None:
    assert _left([3, 5, 0], [0] * 9) == pytest.approx(0.3)
    assert _left([0, 0, 0, 9], [2, 4]) == 0


def test_one_or_two_triggers_do_not_tell_alone() -> None:
    assert _left([9], [0, 0, 0]) == 0
    assert _left([9, 7], [0]) == pytest.approx(0.7)
    assert _left([2], []) == pytest.approx(0.2)
    assert _left([], [1]) == pytest.approx(0.1)


def test_what_is_left_is_told_by_triggers_that_are_stronger_than_they_were_found() -> None:
    """The attacker's trigger is larger than the smallest that leads to the class."""
    ways, images = [cast(Way, _Trigger(0, stronger=6))], torch.zeros(10, 1, 1, 1)
    assert success(cast(Any, None), ways, images, 1) == 0.6
    assert success(cast(Any, None), ways, images, 1, strength=1) == 0


@pytest.mark.parametrize(("heavy", "batch"), [(False, BATCH), (True, BATCH // 2)])
def test_searches_of_heavy_networks_have_half_the_batch(
    monkeypatch: pytest.MonkeyPatch, heavy: bool, batch: int
) -> None:
    found: list[int] = []

    def reconstruct(*_words: Any, **more: Any) -> Trigger:
        found.append(more["batch"])
        return Trigger(1, None, math.inf, 0.0)

    monkeypatch.setattr(ways_in, "reconstruct", reconstruct)
    shown = SimpleNamespace(fewer=lambda count: count // 2 if heavy else count)
    search(cast(Any, shown), torch.zeros(3, 3, 4, 4), 1, torch.Generator(), steps=1)
    assert found == [batch] * len(SEARCHES)
