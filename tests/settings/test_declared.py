"""A hyper-parameter that is said once, at its field."""

import dataclasses
import inspect
import math
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbackdoor.attacks import ATTACKS
from unbackdoor.defences.table import DEFENCES
from unbackdoor.detectors import DETECTORS
from unbackdoor.errors import SettingError
from unbackdoor.settings import INTERNAL, Configured, Setting, described, setting, setting_fields, settings_of
from unbackdoor.train import Recipe


@dataclass(frozen=True, kw_only=True)
class Lamp(Configured):
    """A lamp."""

    watts: float = setting(40.0, "how bright it is", above=0, most=100, own=True)
    warmth: float = setting(0.0, "how yellow", below=math.inf)
    bulbs: int = setting(1, "how many", least=1)
    legs: int = setting(3, "it stands on", least=3, most=5, added=True)
    shade: Literal["none", "paper"] = setting("none", "around it")
    socket: Literal["a", "b", "c"] = setting("a", "on the wall", choices=("a", "b"))
    dimmed: bool = setting(False, "whether it is")
    gain: float = setting(1.0, "of the dimmer", least=0)
    secret: list[int] = field(default_factory=list, metadata=INTERNAL)


@dataclass(frozen=True, kw_only=True)
class Lantern(Lamp):
    bulbs: int = setting(2, "candles", least=2)
    handle: bool = setting(True, "to carry it")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"watts": 0}, "watts: expected a number above 0 and at most 100, got 0"),
        ({"watts": 100.5}, "watts: expected a number above 0 and at most 100, got 100.5"),
        ({"warmth": math.inf}, "warmth: expected a finite number, got inf"),
        ({"warmth": "x"}, "warmth: expected a finite number, got 'x'"),
        ({"bulbs": 0}, "bulbs: expected a whole number of at least 1, got 0"),
        ({"bulbs": 1.0}, "bulbs: expected a whole number of at least 1, got 1.0"),
        ({"bulbs": True}, "bulbs: expected a whole number of at least 1, got True"),
        ({"legs": 6}, "legs: expected a whole number from 3 to 5, got 6"),
        ({"shade": "glass"}, "shade: expected one of none, paper, got 'glass'"),
        ({"socket": "c"}, "socket: expected one of a, b, got 'c'"),
        ({"dimmed": 1}, "dimmed: expected one of False, True, got 1"),
        ({"gain": math.nan}, "gain: expected a number from 0 to inf, got nan"),
    ],
)
def test_what_is_out_of_range_is_refused(values: dict, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        Lamp(**values)
    assert str(caught.value) == message


def test_what_is_in_range_is_taken() -> None:
    lamp = Lamp(watts=100, warmth=-1e300, bulbs=10**9, legs=5, shade="paper", socket="b", dimmed=True, gain=math.inf)
    assert lamp.settings() == {
        "watts": 100,
        "warmth": -1e300,
        "bulbs": 10**9,
        "legs": 5,
        "shade": "paper",
        "socket": "b",
        "dimmed": True,
        "gain": math.inf,
    }


def test_a_field_of_a_subclass_replaces_its_bases() -> None:
    assert [field.name for field in setting_fields(Lantern)] == [*Lamp().settings(), "handle"]
    assert settings_of(Lantern)["bulbs"].meaning == "candles"
    with pytest.raises(SettingError, match="bulbs: expected a whole number of at least 2, got 1"):
        Lantern(bulbs=1)


def test_the_docstring_lists_them() -> None:
    assert inspect.getdoc(Lantern).splitlines()[-3:] == [
        "    dimmed: whether it is.",
        "    gain: of the dimmer.",
        "    handle: to carry it.",
    ]
    assert inspect.getdoc(Lamp).startswith("A lamp.\n\nAttributes:\n    watts: how bright it is.\n")
    assert inspect.getdoc(Recipe).count("Attributes:") == 1


def test_what_has_no_default_is_checked_too() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Bench(Configured):
        seats: int = field(metadata=described(Setting(meaning="on it", least=1)))

    with pytest.raises(TypeError, match="seats"):
        Bench()
    with pytest.raises(SettingError, match="seats: expected a whole number of at least 1, got 0"):
        Bench(seats=0)


@given(st.floats(), st.floats(-5, 5), st.floats(-5, 5), st.booleans(), st.booleans())
def test_a_range_is_its_ends_and_what_is_between(
    value: float, low: float, high: float, without_low: bool, without_high: bool
) -> None:
    ends = {"above" if without_low else "least": low, "below" if without_high else "most": high}
    inside = (value > low if without_low else value >= low) and (value < high if without_high else value <= high)
    assert Setting(meaning="x", kind=float, **ends).allows(value) == inside


#: Whose default is this package's choice, of the methods whose records say so.
LOOKING = ("label", "surrogates", "search_steps", "closed", "regained")
OWN = {
    "anp": {"holdout", "tolerance"},
    "bnp": set(),
    "clp": {"norm_factor", "only_with_norm", "budget"},
    "ep": {"histogram"},
    "fp": set(),
    "ft": set(),
    "ibau": {"radius"},
    "best": {*LOOKING, "most", "kept", "damage", "doubt", "time_limit"},
    "erase": {*LOOKING, "rounds", "moved", "overshoot", "spare", "farthest", "given_back", "protected"},
    "pushing": {*LOOKING, "rounds", "channels", "alone", "outlier", "deviations"},
    "forget": {*LOOKING, "rounds", "steps", "lr", "momentum", "beyond", "clip", "batch_size", "keep", "protected"},
    "lpp": {"lower", "upper", "fc_weights", "norm_factor", "scale", "shrink_to", "upscale", "layers", "budget"},
    "nad": {"cutout"},
    "rnp": {"holdout", "tolerance"},
}


def test_whose_choice_a_default_is() -> None:
    found = {
        name: {key for key, about in settings_of(DEFENCES[name]).items() if about.own} for name in sorted(DEFENCES)
    }
    assert found == OWN


KINDS = [registry[name] for registry in (ATTACKS, DEFENCES, DETECTORS) for name in registry] + [Recipe]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_setting_is_said_at_its_field(kind: type) -> None:
    about = settings_of(kind)
    assert [field.name for field in setting_fields(kind) if field.name not in about] == ["name"] * (kind is Recipe)
    for name, said in about.items():
        assert said.meaning == said.meaning.strip().removesuffix(".")
        assert said.kind is not None or name == "milestones"
        default = {field.name: field.default for field in dataclasses.fields(kind)}[name]
        assert default is dataclasses.MISSING or said.allows(default)
