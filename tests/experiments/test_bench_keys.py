"""The keys of older results stand, whatever settings their methods and attacks have got since."""

from dataclasses import asdict, dataclass

import pytest

from unbackdoor.experiments import Repair, Training
from unbackdoor.settings import distinguishing, setting


def _training(attack: str | None) -> Training:
    return Training(
        data="cifar10",
        arch="resnet18:width=2",
        attack=attack,
        rate=0.1,
        target=0,
        recipe="fast",
        epochs=None,
        seed=0,
        dtype="bfloat16",
    )


def _repair(method: str, clean: float | None = None) -> Repair:
    return Repair(training=_training("badnet"), method=method, clean=clean, clean_seed=None if clean is None else 0)


#: As they were before any setting was added. A key that differs from these makes results of many hours unreachable:
#: where the code comes to other results, raise the attack's or the method's `version`, and only then change its line.
TRAININGS = {
    "badnet": "f1c358230a80e96be4d875957588cd26",
    "badnet:size=2": "4dc72147a5996b6e2401ab1cb983403c",
    "blended": "0a74cc42f508e298923e149333bb0a8d",
    "bpp": "013d7fa0a94dbcdb3cedb666b5cb61ea",
    "inputaware": "63a0dadaa028ba56cfe3728a4e840fcf",
    "lc": "ff4438e1a69003c53c26c7a2c394180f",
    "lf": "827e1cfdda48201cb35dd11c1d30b5ac",
    "sig": "8a3e445c539be92d921028ac74d5129d",
    "ssba": "a87a74e34b0c122f248be05edda40daa",
    "wanet": "e947464db4d9ea9b656829ddf351a076",
}
REPAIRS = {
    "lpp": "0334dd3fbb6c39c8f54f36cce515f23b",
    "lpp:norm_factor=printed": "0ca734377c6b95aab1904179682b563d",
    "clp": "5a37ca94e10154f623834a653aa365a8",
}
WITH_IMAGES = {
    "bnp": "698ed079dde07876685f8d2557152c0c",
    "bnp@backdoorbench": "2399adc05196cebcf2a45b500864b1ac",
    "fp": "21e4a66c9c22fba9fef0ebc8230fb1e5",
    "ft": "f4ea6d0780e5a7b310a1db69daddb3cc",
    "ibau": "c8e22f184763358980dbd4bf53d8c6b5",
    "ibau:lr=0.0001,batch_size=256": "c79969c35941c1bfc469b869ee657c6b",
    "nad": "6f4fa5038329a67a20ce9dec40c8c282",
    "nad:cutout=2": "5a2441a33484cd92c03bc6a70f19d355",
}


@pytest.mark.parametrize("attack", TRAININGS)
def test_a_trainings_key_is_what_it_was(attack: str) -> None:
    assert _training(attack).key({"cifar10": "d"}) == TRAININGS[attack]


@pytest.mark.parametrize("method", [*REPAIRS, *WITH_IMAGES])
def test_a_repairs_key_is_what_it_was(method: str) -> None:
    cell = _repair(method) if method in REPAIRS else _repair(method, 0.05)
    assert cell.key({"cifar10": "d"}) == {**REPAIRS, **WITH_IMAGES}[method]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("bpp", "bpp@as_published"),
        ("bpp@as_published", "bpp@backdoorbench"),
        ("wanet", "wanet:rounding=truncate"),
        ("wanet:shared=all", "wanet:shared=coins"),
        ("badnet", "badnet:rounding=truncate"),
    ],
)
def test_another_value_of_a_later_setting_is_another_cell(first: str, second: str) -> None:
    assert _training(first).key({"cifar10": "d"}) != _training(second).key({"cifar10": "d"})


def test_a_preset_is_its_settings() -> None:
    spelled = _training("bpp:negative_rate=0.2,shared=coins,fill=mean")
    assert _training("bpp@as_published").key({"cifar10": "d"}) == spelled.key({"cifar10": "d"})
    assert _training("bpp:shared=nothing").key({"cifar10": "d"}) == TRAININGS["bpp"]  # a default written out


@dataclass(frozen=True, kw_only=True)
class Knob:
    turns: int = 3
    colour: str = setting("red", "what it is painted", added=True)


def test_what_was_added_counts_where_it_is_turned() -> None:
    assert distinguishing(Knob(), asdict(Knob())) == {"turns": 3}
    assert distinguishing(Knob(turns=4), {"name": "knob", "turns": 4, "colour": "red"}) == {"name": "knob", "turns": 4}
    assert distinguishing(Knob(colour="blue"), asdict(Knob(colour="blue"))) == {"turns": 3, "colour": "blue"}
