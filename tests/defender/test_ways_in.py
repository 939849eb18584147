"""What is an easy way, by hand."""

import math

import pytest
import torch

from unbackdoor.defender.channel_triggers import ChannelTrigger
from unbackdoor.defender.stimulation import Place
from unbackdoor.defender.triggers import Trigger
from unbackdoor.defender.ways_in import SEARCHES, Together, easy_together, regained


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
