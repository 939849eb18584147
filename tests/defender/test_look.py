"""All witnesses at once, on networks with a planted way into class 4."""

import pytest
import torch
from torch import nn

from planted_networks import EXAMPLE, PLAIN, Deaf, Stripes, Toy
from unbackdoor.defender import on_pixels as on_pixels_module
from unbackdoor.defender.case import Case
from unbackdoor.defender.clean_networks import CleanNetwork, CleanNetworks
from unbackdoor.defender.look import Look, has_running_statistics, look
from unbackdoor.defender.on_pixels import on_pixels

CLEAN = CleanNetworks(
    networks=[
        CleanNetwork(
            data="d",
            arch="a",
            classes=6,
            running_statistics=True,
            largest={"head": 6.0 + step, "stimulation": 3.0 + step, "reconstruction": 2.0 + step},
        )
        for step in (0, 0.1, 0.2, 0.3, 0.4)
    ]
)


def seen(model: nn.Module, told: list[tuple[int, int, str]] | None = None) -> Look:
    case = Case(network=model.eval(), example=EXAMPLE, normalisation=PLAIN, generator=torch.Generator().manual_seed(0))
    with case.working("look") as copy:
        shown, _ = on_pixels(case, copy)
        return look(
            shown,
            case.layers(),
            case.rng,
            (lambda *words: told.append(words)) if told is not None else (lambda *_: None),
            count=24,
            stimulated=12,
            steps=40,
            batch=12,
            known=CLEAN,
        )


def test_channels_that_speak_for_a_class() -> None:
    told: list[tuple[int, int, str]] = []
    found = seen(Toy(channel=200.0), told)
    assert set(found.scores) == {"head", "stimulation", "channels", "reconstruction"}
    assert found.verdict.suspects[0] == 4
    assert found.verdict.p == found.verdict.least == 1 / 6
    assert found.values["stimulation"][4] is not None
    assert len(found.made.images) == 24
    assert len(found.drawn) == 12
    assert [layer.layer for layer in found.pushes] == ["second", "third"]
    assert len(found.values["channels"]) == len(found.scores["channels"]) == 6
    done = [one for one, _, _ in told]
    assert done == sorted(done)
    assert (told[-1][0], {total for _, total, _ in told}) == (1000, {1000})


def test_a_heavy_network_is_shown_half_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_pixels_module, "HEAVY", 0)
    found = seen(Toy(channel=200.0))
    assert len(found.made.images) == 12
    assert len(found.drawn) == 12
    assert found.verdict.suspects[0] == 4


def test_a_corner_that_speaks_for_a_class() -> None:
    found = seen(Stripes(corner=100.0))
    assert found.verdict.suspects == (4,)
    trigger = found.trigger(4)
    assert trigger is not None
    assert trigger.label == 4
    assert "stimulation" not in found.scores
    assert found.missing["channels"] == found.missing["stimulation"]
    assert "no hidden layer is a module" in found.missing["stimulation"]
    assert "head" in found.missing
    assert any("no norm with running statistics" in note for note in found.verdict.notes)
    assert seen(Stripes()).verdict.suspects == ()


def test_the_same_seed_sees_the_same() -> None:
    first, second = seen(Stripes(corner=100.0)), seen(Stripes(corner=100.0))
    assert first.scores == second.scores
    assert first.verdict == second.verdict
    assert torch.equal(first.made.images, second.made.images)


def test_a_network_of_one_answer() -> None:
    found = seen(Deaf())
    assert found.verdict.p is None
    assert found.scores == {}
    assert found.missing["reconstruction"] == "the network answers class 0 to every generated image"
    assert found.trigger(0) is None


def test_running_statistics() -> None:
    assert has_running_statistics(nn.Sequential(nn.BatchNorm2d(2)))
    assert not has_running_statistics(nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.GroupNorm(1, 2)))


def test_the_network_is_left_as_it_is() -> None:
    model = Toy(channel=200.0).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _ = seen(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
