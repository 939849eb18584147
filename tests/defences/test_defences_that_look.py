"""Data-free defences that look first: they close a learnt way into class 4 of a small trained network."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from layer_zoo import bits
from planted_networks import EXAMPLE, PLAIN, Deaf, Stripes, Toy
from trained_toys import SIDE, TARGET, accuracy, attack_success, trained
from unbackdoor.defences.base import Defence, Outcome
from unbackdoor.defences.data_free import Best, Erase, Forget, Pushing, directions, looking
from unbackdoor.defences.data_free.best import Trial
from unbackdoor.defences.data_free.directions import across, classifier_inputs
from unbackdoor.defences.data_free.erase import both, erased, moved_to, too_few
from unbackdoor.defences.data_free.scene import OutOfTime, Standing, WaysIn
from unbackdoor.defences.table import DEFENCES
from unbackdoor.defender import on_pixels as on_pixels_module
from unbackdoor.defender import ways_in
from unbackdoor.defender.case import silent
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.stimulation import Firing, Place
from unbackdoor.defender.triggers import Mask
from unbackdoor.defender.ways_in import Stamp
from unbackdoor.errors import MethodError, SettingError
from unbackdoor.graph import layer_graph
from unbackdoor.graph.tensors import Tensors
from unbackdoor.inputs import InputSpec, Normalisation
from unbackdoor.prune import Editor
from witness_samples import a_witness, cannot_tell

LOOKING = {name: DEFENCES[name] for name in ("best", "erase", "forget", "pushing")}
QUICK: dict[str, Any] = {"surrogates": 48, "search_steps": 20}
#: Where a repair stands for one, and takes the class away.
CRUDE: dict[str, Any] = {**QUICK, "kept": 0.0}
LEARNT = {"example": torch.zeros(2, 3, SIDE, SIDE), "normalisation": Normalisation(mean=(0.5,), std=(0.5,))}


def state(model: nn.Module) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in model.state_dict().items()}


def repaired(method: Defence, model: nn.Module, **given: Any) -> Outcome:
    return method(model.eval(), generator=torch.Generator().manual_seed(0), **(given or LEARNT))


@pytest.mark.parametrize(("name", "left", "kept"), [("best", 0.1, 0.8), ("erase", 0.4, 0.8), ("forget", 0.15, 0.8)])
def test_a_backdoor_is_closed(name: str, left: float, kept: float) -> None:
    model = trained()
    before = state(model)
    assert attack_success(model) > 0.95
    outcome = repaired(LOOKING[name](label=TARGET, **QUICK), model)
    assert state(model) == before
    assert attack_success(outcome.model) < left
    assert accuracy(outcome.model) > kept
    assert outcome.report.complete
    assert "was given" in outcome.report.story[0]


def change_verdicts(monkeypatch: pytest.MonkeyPatch, rule: Callable[[Any, OnPixels], dict[str, Any]]) -> None:
    """The verdict of each look is changed by what a rule makes of it, and of the network that was looked at."""
    looked = looking.look

    def look(shown: OnPixels, *words: Any, **more: Any) -> Any:
        found = looked(shown, *words, **more)
        return dataclasses.replace(found, verdict=dataclasses.replace(found.verdict, **rule(found, shown)))

    monkeypatch.setattr(looking, "look", look)


def suspect(monkeypatch: pytest.MonkeyPatch, rule: Callable[[Any, OnPixels], tuple[int, ...]]) -> None:
    """The witnesses suspect what a rule makes of a look, and of the network that was looked at."""
    change_verdicts(monkeypatch, lambda found, shown: {"suspects": rule(found, shown)})


def doubt(monkeypatch: pytest.MonkeyPatch, p: float) -> None:
    """No class is suspected, but the attacker's stands out most, with such a p."""

    def weakly(_found: Any, shown: OnPixels) -> dict[str, Any]:
        standard = {"head": tuple(float(label == TARGET) for label in range(shown.classes))}
        return {"suspects": (), "p": p, "standard": standard}

    change_verdicts(monkeypatch, weakly)


def classes_moved(one: Any, other: Any) -> list[int]:
    """The classes whose biases differ in the last layers of two networks."""
    classes: list[int] = (one[-1].bias != other[-1].bias).nonzero().flatten().tolist()
    return classes


def test_the_class_that_the_witnesses_suspect_is_closed_and_the_plan_is_the_same_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def highest(found: Any, _shown: OnPixels) -> tuple[int, ...]:
        """The class with the largest z is suspected, whatever the honest networks say of so small a network."""
        highest = [max(z or 0.0 for z in scores) for scores in zip(*found.verdict.standard.values(), strict=True)]
        return (highest.index(max(highest)),)

    suspect(monkeypatch, highest)
    model = trained()
    plans = [Erase(**QUICK).plan(model, generator=torch.Generator().manual_seed(3), **LEARNT) for _ in range(2)]
    assert plans[0].report().to_json() == plans[1].report().to_json()
    report = plans[0].report()
    assert report.witness is not None
    assert report.witness.suspects[0] == TARGET
    assert report.story[0].startswith(f"The witnesses suspect class {TARGET}")
    assert all(line in report.to_text().replace("\n  ", " ") for line in report.story[:1])
    copy, before = torch.nn.Sequential(*model), state(model)
    plans[0].apply_(copy)
    try:
        assert state(copy) != before
    finally:
        plans[1].undo(copy)
    assert state(model) == before


def test_the_fewest_surrogates_are_enough_for_a_heavy_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_pixels_module, "HEAVY", 0)
    outcome = repaired(Pushing(label=TARGET, surrogates=2, search_steps=2), trained())
    assert "was given" in outcome.report.story[0]


@pytest.mark.parametrize("name", LOOKING)
def test_nothing_suspected_is_nothing_changed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    doubt(monkeypatch, 0.26 if name == "best" else 0.06)
    outcome = repaired(LOOKING[name](surrogates=12, search_steps=2), trained())
    assert state(outcome.model) == state(trained())
    assert "nothing was changed" in outcome.report.story[0]
    assert outcome.report.complete


def test_best_closes_a_class_that_is_not_suspected_if_that_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    doubt(monkeypatch, 0.25)
    monkeypatch.setattr(Best, "_is_enough", lambda *_: False)  # so that all are tried that may be
    outcome = repaired(Best(**QUICK), trained())
    first, *tried, last = outcome.report.story
    assert "No class is suspected (p = 0.25" in first
    assert f"Class {TARGET} stands out most" in first
    assert any(told.startswith("Tried: pushing") for told in tried)
    assert not any("forget" in told for told in tried)
    assert last.startswith("Chosen: ")
    assert f"for class {TARGET}, since" in last
    assert attack_success(outcome.model) < 0.2
    assert outcome.report.doubtful == TARGET
    assert json.loads(outcome.report.to_json())["doubtful"] == TARGET


def test_the_doubtful_class_is_the_one_that_stands_out_most() -> None:
    assert Best().doubtful(a_witness(suspects=(), p=0.25)) == a_witness().suspects[0]
    assert Best().doubtful(a_witness(suspects=(), p=0.26)) is None
    assert Best().doubtful(cannot_tell()) is None
    assert Erase().doubtful(a_witness(suspects=(), p=0.06)) is None


@pytest.mark.parametrize("setting", [{"damage": 0.1}, {"doubt": 0.0}])
def test_what_is_not_suspected_and_not_cheap_is_left(setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    doubt(monkeypatch, 0.1)
    outcome = repaired(Best(**QUICK, **setting), trained())
    assert state(outcome.model) == state(trained())
    assert "nothing was changed" in outcome.report.story[-1]
    assert outcome.report.doubtful is None


def test_one_or_two_easy_ways_are_too_few_for_a_weak_suspicion(monkeypatch: pytest.MonkeyPatch) -> None:
    doubt(monkeypatch, 0.1)
    search = WaysIn._search

    def finds_two(*words: Any, **more: Any) -> Any:
        triggers, ways = search(*words, **more)
        assert len(ways) >= 3
        return triggers, ways[:2]

    monkeypatch.setattr(WaysIn, "_search", finds_two)
    outcome = repaired(Best(**QUICK), trained())
    assert state(outcome.model) == state(trained())
    why = "fewer than 3 easy ways into it were found: nothing was changed."
    assert outcome.report.story[-1] == f"Class {TARGET} is not suspected, and {why}"


def test_best_takes_no_repair_beyond_the_loss_that_is_allowed() -> None:
    assert Best().within(1).damage == 1
    assert Best(damage=0.5).within(1).damage == 0.5
    assert Best().within(math.inf) == Best()
    assert Erase().within(0) == Erase()


def stops(*_words: Any, **_more: Any) -> Any:
    raise MethodError("no images")


def late(*_words: Any, **_more: Any) -> Any:
    raise OutOfTime


@pytest.mark.parametrize(
    ("fails", "why"), [(stops, "it cannot be closed here (no images)"), (late, "the time ran out")]
)
def test_a_weak_suspicion_is_never_an_error(
    fails: Callable[..., Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubt(monkeypatch, 0.1)
    monkeypatch.setattr(looking, "pool_of", fails)
    outcome = repaired(Best(**QUICK), trained())
    assert outcome.report.story[-1] == f"Class {TARGET} is not suspected, and {why}: nothing was changed."
    assert state(outcome.model) == state(trained())


@pytest.mark.parametrize("name", LOOKING)
def test_what_does_not_fit_is_said(name: str) -> None:
    with pytest.raises(SettingError, match="label: expected a class below 6, got 6"):
        repaired(LOOKING[name](label=6), trained())
    with pytest.raises(SettingError, match="tensors without a network"):
        LOOKING[name]().plan(trained().state_dict())
    with pytest.raises(SettingError, match="uses no images"):
        LOOKING[name]()(trained(), LEARNT["example"], generator=torch.Generator())


def test_a_network_that_answers_one_class_is_left() -> None:
    model = Deaf()
    outcome = repaired(Forget(label=0, **QUICK), model, example=EXAMPLE, normalisation=PLAIN)
    assert state(outcome.model) == state(model)
    assert outcome.report.story[-1] == "No easy way into class 0 was found."
    assert (outcome.report.witness is None) == ("cannot tell" in outcome.report.story[0])
    assert outcome.report.complete  # the class was given, so no witness is needed


def test_erasing_needs_one_linear_classifier_with_a_bias() -> None:
    with pytest.raises(MethodError, match="classifier"):
        repaired(Erase(label=4, **QUICK), Stripes(corner=100.0), example=EXAMPLE, normalisation=PLAIN)
    with pytest.raises(MethodError, match="expected a Linear classifier with a bias, 11 is Linear"):
        repaired(Erase(label=4, **QUICK), trained(head=False))


def fake(monkeypatch: pytest.MonkeyPatch, kind: type[Defence], bias: float | None) -> None:
    """A repair that adds to the bias of class 4, or cannot work."""

    def each_round(_self: Defence, scene: Any, search: Any, _start: Any) -> Iterator[tuple[str, Standing]]:
        if bias is None:
            raise MethodError("not on this network")
        with torch.no_grad():
            scene.shown.model[-1].bias[search.label] += bias
        yield f"Added {bias}.", search.look(scene.shown)

    monkeypatch.setattr(kind, "each_round", each_round)


def judge(monkeypatch: pytest.MonkeyPatch, rule: Callable[[Trial], dict[str, float]]) -> None:
    """Of what a trial came to, some figures are what a rule makes of it."""
    best = sys.modules[Best.__module__]
    judged = best._judged

    def replaced(*words: Any) -> Trial:
        found: Trial = judged(*words)
        figures: dict[str, Any] = {**rule(found)}
        return dataclasses.replace(found, **figures)

    monkeypatch.setattr(best, "_judged", replaced)


@pytest.fixture
def all_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No repair is cheap enough to end the trials."""
    monkeypatch.setattr(sys.modules[Best.__module__], "ENOUGH", (-1.0, -1.0, -1.0))


@pytest.mark.parametrize(
    ("forgets", "erases", "chosen"),
    [
        (None, -50.0, "erase for class 4, since it closes"),
        (-50.0, None, "forget for class 4, since it closes"),
        (0.1, 0.0, "leaves least"),
    ],
)
@pytest.mark.usefixtures("all_tried")
def test_the_repair_that_closes_the_class_is_taken(
    monkeypatch: pytest.MonkeyPatch, forgets: float | None, erases: float | None, chosen: str
) -> None:
    fake(monkeypatch, Forget, forgets)
    fake(monkeypatch, Erase, erases)
    fake(monkeypatch, Pushing, None)
    outcome = repaired(Best(label=TARGET, **CRUDE), trained())
    story = outcome.report.story
    assert chosen in story[-1]
    assert (attack_success(outcome.model) < 0.1) == ("closes" in chosen)
    cannot = "forget" if forgets is None else "erase"
    told = f"{cannot} was tried, and cannot work here: not on this network"
    assert (told in story) == (None in (forgets, erases))


@pytest.mark.parametrize(
    ("costs", "kept", "more"),
    [
        ((0.05, 0.01, 0.5), 0.8, False),
        ((0.051, 0, 0), 0.8, True),
        ((0, 0.011, 0), 0.8, True),
        ((0, 0, 0.51), 0.8, True),
        ((0, 0, 0), 0.79, True),
    ],
)
def test_no_more_is_tried_where_erasing_is_cheap_enough(
    monkeypatch: pytest.MonkeyPatch, costs: tuple[float, float, float], kept: float, more: bool
) -> None:
    changed, sure, damage = costs
    judge(monkeypatch, lambda _trial: {"changed": changed, "sure": sure, "damage": damage, "kept": kept})
    fake(monkeypatch, Erase, -50.0)
    fake(monkeypatch, Forget, None)
    fake(monkeypatch, Pushing, None)
    story = repaired(Best(label=TARGET, **CRUDE), trained()).report.story
    assert ("forget was tried, and cannot work here: not on this network" in story) == more
    assert "Chosen: erase" in story[-1]


def test_the_progress_of_a_repair_that_fails_is_not_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_self: Defence, scene: Any, _search: Any, _start: Any) -> Iterator[tuple[str, Standing]]:
        scene.progress(1, 1, "nearly done")
        raise MethodError("not on this network")
        yield

    for kind in (Forget, Pushing, Erase):
        monkeypatch.setattr(kind, "each_round", fails)
    told: list[int] = []
    repaired(Best(label=TARGET, **QUICK), trained(), **LEARNT, progress=lambda done, _total, _note: told.append(done))
    assert told == sorted(told)
    assert len({done for done in told if done > 600}) >= 2


def test_a_repair_that_leaves_no_numbers_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_self: Defence, scene: Any, search: Any, _start: Any) -> Iterator[tuple[str, Standing]]:
        yield "Looked well.", search.look(scene.shown)
        with torch.no_grad():
            scene.shown.model[-1].bias.fill_(torch.nan)

    fake(monkeypatch, Forget, -50.0)
    fake(monkeypatch, Pushing, None)
    monkeypatch.setattr(Erase, "each_round", breaks)
    story = repaired(Best(label=TARGET, **CRUDE), trained()).report.story
    assert any(line.startswith("erase was tried, and cannot work here: expected finite logits") for line in story)
    assert "Chosen: forget" in story[-1]


def test_a_repair_that_changes_too_much_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Forget, Erase, Pushing):
        fake(monkeypatch, kind, 50.0)
    outcome = repaired(Best(label=TARGET, **QUICK), trained())
    assert state(outcome.model) == state(trained())
    assert "at an acceptable cost" in outcome.report.story[-1]


@pytest.mark.usefixtures("all_tried")
def test_a_repair_that_takes_the_class_away_is_not_taken_if_another_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Erase, Forget):
        fake(monkeypatch, kind, -50.0)
    fake(monkeypatch, Pushing, None)
    judge(monkeypatch, lambda trial: {"kept": 0.35 if trial.name == "forget" else 0.34})
    story = repaired(Best(label=TARGET, **QUICK), trained()).report.story
    assert f"erase is not taken: it keeps only 34% of the answers of class {TARGET}." in story
    assert "Chosen: forget" in story[-1]


def test_where_each_repair_takes_the_class_away_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, Erase, -50.0)
    fake(monkeypatch, Forget, None)
    fake(monkeypatch, Pushing, None)
    story = repaired(Best(label=TARGET, **QUICK), trained()).report.story
    assert any(line.startswith(f"After each repair, class {TARGET} is another than before.") for line in story)
    assert "Chosen: erase" in story[-1]


@pytest.mark.parametrize(("damage", "kept", "cost"), [(0.5, 1.0, 0.5), (0.5, 0.75, 3.0), (0.0, 0.0, 10.0)])
def test_what_a_repair_costs_counts_the_class_as_one_of_ten(damage: float, kept: float, cost: float) -> None:
    assert dataclasses.replace(trial(), damage=damage, kept=kept).cost == cost


@pytest.mark.usefixtures("all_tried")
def test_of_repairs_that_close_the_class_the_one_that_keeps_more_of_it_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One is predicted to cost the other classes less, and keeps less of the class."""
    costs = {"erase": {"damage": 0.1, "kept": 0.5}, "forget": {"damage": 1.0, "kept": 0.7}}
    judge(monkeypatch, lambda trial: costs[trial.name])
    for kind in (Erase, Forget):
        fake(monkeypatch, kind, -50.0)
    fake(monkeypatch, Pushing, None)
    assert "Chosen: forget" in repaired(Best(label=TARGET, **QUICK), trained()).report.story[-1]


@pytest.mark.parametrize(
    ("left", "near"), [((0.04, 0.06, 0.08), [0, 1]), ((0.04, 0.03, 0.0), [1, 2]), ((0.5, 0.9, 0.2), [2])]
)
def test_repairs_that_close_the_class_or_leave_about_the_least(left: tuple[float, ...], near: list[int]) -> None:
    standings = [dataclasses.replace(trial().standing, left=share) for share in left]
    trials = [dataclasses.replace(trial(), standing=standing) for standing in standings]
    found = Best(closed=0.03).nearest(trials)
    assert [trials.index(one) for one in found] == near


def trial() -> Trial:
    """It closes the class, and costs nothing."""
    standing, shown = Standing(triggers=(), ways=(), left=0.0, regained=1.0), cast(OnPixels, None)
    more: dict[str, Any] = {"changed": 0.0, "sure": 0.0, "kept": 1.0, "damage": 0.0, "told": ()}
    return Trial(name="a", shown=shown, standing=standing, **more)


@pytest.mark.parametrize("among", [400, 0])
def test_images_of_the_class_are_kept_and_others_tell_how_many(monkeypatch: pytest.MonkeyPatch, among: int) -> None:
    """Crops of photographs; where none is answered with the class, impressions of it tell."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def each_round(_self: Defence, scene: Any, search: Any, _start: Any) -> Iterator[tuple[str, Standing]]:
        found.append((search.examples, search.held_out))
        for images in found[0]:
            right = scene.shown.logits(images).argmax(1) == TARGET
            assert int((~right).sum()) <= len(images) // 20  # found by a folded copy, which rounds otherwise
        with torch.no_grad():
            scene.shown.model[-1].bias[TARGET] -= 50.0
        yield "Moved.", search.look(scene.shown)

    monkeypatch.setattr(sys.modules[WaysIn.__module__], "AMONG", among)
    monkeypatch.setattr(Erase, "each_round", each_round)
    fake(monkeypatch, Forget, None)
    fake(monkeypatch, Pushing, None)
    story = repaired(Best(label=TARGET, **CRUDE), trained()).report.story
    examples, held_out = found[0]
    assert len(held_out)
    assert bool(len(examples)) == bool(among)
    assert not {image.numpy().tobytes() for image in examples} & {image.numpy().tobytes() for image in held_out}
    assert any(line.startswith("Tried: erase") and "keeps 0% of those of the class" in line for line in story)


@pytest.mark.parametrize(("fair", "far"), [(0.1, 1.0), (100.0, 0.4)])
def test_images_of_the_class_that_lie_on_the_ways_are_left_out(
    monkeypatch: pytest.MonkeyPatch, fair: float, far: float
) -> None:
    """Those beyond `FAR`, and of more than `FAIR` times the class's share the farthest."""
    scene = sys.modules[WaysIn.__module__]
    found: list[torch.Tensor] = []

    def along(_shown: OnPixels, _path: str, _ways: Any, _others: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        found.append(images)
        return images.mean((1, 2, 3))

    def each_round(_self: Defence, _scene: Any, search: Any, _start: Any) -> Iterator[tuple[str, Standing]]:
        found.append(torch.cat([search.examples, search.held_out]))
        raise MethodError("not on this network")
        yield

    monkeypatch.setattr(scene, "along", along)
    monkeypatch.setattr(scene, "FAIR", fair)
    monkeypatch.setattr(scene, "FAR", far)
    monkeypatch.setattr(Erase, "each_round", each_round)
    with pytest.raises(MethodError, match="not on this network"):
        repaired(Erase(label=TARGET, **QUICK), trained())
    among, kept = (images.mean((1, 2, 3)).sort().values for images in found)
    assert 0 < len(kept) < len(among)
    assert torch.equal(kept, among[among <= far][: round(fair * scene.AMONG / 6)])


@pytest.mark.usefixtures("all_tried")
def test_the_time_limit_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(sys.modules[Best.__module__], "time", SimpleNamespace(monotonic=lambda: clock.now))
    fake(monkeypatch, Erase, -50.0)
    fake(monkeypatch, Pushing, None)

    def slow(_self: Defence, scene: Any, _search: Any, _start: Any) -> Iterator[tuple[str, Standing]]:
        clock.now = 61.0
        scene.progress(0, 1, "")
        yield from ()

    monkeypatch.setattr(Forget, "each_round", slow)
    outcome = repaired(Best(label=TARGET, time_limit=60.0, **CRUDE), trained())
    assert attack_success(outcome.model) < 0.1
    assert "The time limit of 60 s ran out, so no more was tried." in outcome.report.story
    assert "Chosen: erase" in outcome.report.story[-1]
    clock.now = 0.0
    monkeypatch.setattr(Erase, "each_round", slow)
    with pytest.raises(MethodError, match="the time limit of 60 s ran out before a repair was found"):
        repaired(Best(label=TARGET, time_limit=60.0, **CRUDE), trained())


def test_a_class_that_cannot_be_closed_does_not_cost_the_repair_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def close(_self: Defence, scene: Any, search: Any) -> list[str]:
        with torch.no_grad():
            scene.shown.model[-1].bias[search.label] -= 50.0
        if search.label == 1:
            raise MethodError("half way through")
        return ["Closed."]

    suspect(monkeypatch, lambda _found, _shown: (TARGET, 1))
    monkeypatch.setattr(Erase, "close", close)
    model = trained()
    outcome = repaired(Erase(**QUICK), model)
    assert classes_moved(outcome.model, model) == [TARGET]
    assert outcome.report.story[-1] == "Nothing was changed for class 1: half way through"


@pytest.mark.parametrize("still", [True, False])
def test_another_class_is_closed_only_if_it_is_still_suspected_then(
    monkeypatch: pytest.MonkeyPatch, *, still: bool
) -> None:
    looks: list[torch.Tensor] = []

    def suspicious(_found: Any, shown: OnPixels) -> tuple[int, ...]:
        looks.append(cast(Any, shown.model)[-1].bias.detach().clone())
        return (TARGET, 1, 2) if len(looks) == 1 or still else (2,)

    def close(_self: Defence, scene: Any, search: Any) -> list[str]:
        assert torch.equal(scene.pool.answers, scene.shown.logits(scene.pool.images).argmax(1)), (
            "of the network as it is"
        )
        with torch.no_grad():
            scene.shown.model[-1].bias[search.label] -= 50.0
        return [f"Closed {search.label}."]

    suspect(monkeypatch, suspicious)
    monkeypatch.setattr(Erase, "close", close)
    model = trained()
    outcome = repaired(Erase(**QUICK), model)
    told = [line for line in outcome.report.story if "lass" in line or "losed" in line]
    assert set(classes_moved(outcome.model, model)) == ({TARGET, 1, 2} if still else {TARGET, 2})
    assert ("Class 1 is no longer suspected, so nothing was changed for it." in told) is not still
    assert len(looks) == (3 if still else 2), "the network is looked at again where it was changed, and only there"
    assert all(float(bias[TARGET]) < -40 for bias in looks[1:])


@pytest.mark.usefixtures("all_tried")
def test_a_class_that_no_time_is_left_for_does_not_cost_the_repair_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=0.0)

    def late(_self: Defence, _scene: Any, _search: Any, _start: Any) -> Iterator[tuple[str, Standing]]:
        clock.now = 61.0
        raise MethodError("not on this network")
        yield

    suspect(monkeypatch, lambda _found, _shown: (TARGET, 1))
    monkeypatch.setattr(sys.modules[Best.__module__], "time", SimpleNamespace(monotonic=lambda: clock.now))
    fake(monkeypatch, Erase, -50.0)
    fake(monkeypatch, Pushing, None)
    monkeypatch.setattr(Forget, "each_round", late)
    outcome = repaired(Best(time_limit=60.0, **CRUDE), trained())
    assert attack_success(outcome.model) < 0.1
    assert outcome.report.story[-1] == "The time ran out, so nothing was changed for class 1."


@pytest.mark.parametrize(("left", "undone"), [(0.3, True), (0.1, False)])
def test_a_round_is_undone_if_it_makes_worse_what_it_began_with(left: float, undone: bool) -> None:
    """It began behind another repair, with a fifth of the ways left; all of them were left at first."""
    model = nn.Linear(2, 2)
    model.register_state_dict_post_hook(lambda _module, state, _prefix, _more: state.pop("bias"))
    before = model.bias.detach().clone()

    class Adds(Pushing):
        def begin(self, scene: Any, search: Any) -> Any:
            def step(_found: Any, _progress: Any) -> str:
                with torch.no_grad():
                    scene.shown.model.bias += 1
                return "Added."

            return step

    way = Stamp(Mask((3, 8, 8), torch.Generator(), torch.device("cpu")), 2.0, 9.0)
    first, start, after = (Standing(triggers=(), ways=(way,), left=share, regained=0.0) for share in (1.0, 0.2, left))
    scene: Any = SimpleNamespace(shown=SimpleNamespace(model=model), progress=silent)
    search: Any = SimpleNamespace(label=1, first=first, look=lambda _shown, _progress: after)
    ((said, standing),) = list(Adds(rounds=1).each_round(scene, search, start))
    assert standing is (start if undone else after)
    assert torch.equal(model.bias, before if undone else before + 1)
    assert ("was undone" in said) == undone


def test_a_trigger_can_be_shown_stronger_than_it_was_found() -> None:
    """What it adds is multiplied, and pixels stay in [0, 1]."""

    class Brighter:
        def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels + 0.25

    network: Any = nn.Flatten()
    shown = OnPixels(network, InputSpec(shape=(1, 1, 2), mean=(0.0,), std=(1.0,)))
    way = Stamp(cast(Any, Brighter()), 1.0, 2.0)
    plain, pixels = torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.0, 0.5]]], [[[0.0, 0.5]]]])
    assert way.logits(shown, plain, pixels).tolist() == [[0.0, 0.0], [0.25, 0.75], [0.25, 0.75]]
    stronger = way.logits(shown, plain, pixels, torch.tensor([1.0, 3.0]))
    assert stronger.tolist() == [[0.0, 0.0], [0.25, 0.75], [0.75, 1.0]]


def test_too_little_time_changes_nothing() -> None:
    model = trained()
    before = state(model)
    with pytest.raises(MethodError, match=r"the time limit of 1e-06 s ran out before a repair was found; nothing was"):
        repaired(Best(label=TARGET, time_limit=1e-6, **QUICK), model)
    assert state(model) == before


def test_a_trial_in_words() -> None:
    standing = Standing(triggers=(), ways=(), left=0.25, regained=0.75)
    assert str(dataclasses.replace(trial(), standing=standing, changed=0.02, sure=0.001, kept=0.9, damage=1.25)) == (
        "a changes 2.0% of the answers of other classes, and 0.1% of the sure ones, keeps 90% of those of the class, "
        "and is predicted to lose 1.2 points of accuracy; easy ways of another search move 25% of the images by their "
        "median, and triggers are 75% of the way, in factors, to what other classes need"
    )


@pytest.mark.parametrize(("damage", "taken"), [(2.9, True), (3.1, False)])
def test_a_repair_that_is_predicted_to_lose_too_much_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, damage: float, taken: bool
) -> None:
    fake(monkeypatch, Erase, -50.0)
    fake(monkeypatch, Forget, None)
    fake(monkeypatch, Pushing, None)
    best = sys.modules[Best.__module__]
    monkeypatch.setattr(best.meter, "predict", lambda *_: SimpleNamespace(loss=damage))
    model = trained()
    outcome = repaired(Best(label=TARGET, **CRUDE), model)
    assert (state(outcome.model) != state(model)) == taken
    refused = [line for line in outcome.report.story if "not taken: it is predicted to lose 3.1 points" in line]
    assert len(refused) == (not taken)


def test_both_limits_close_a_class() -> None:
    method = Erase(closed=0.1, regained=0.5)
    for left, regained, closed in ((0.1, 0.5, True), (0.1, None, True), (0.11, 1.0, False), (0.0, 0.49, False)):
        assert method.is_closed(Standing(triggers=(), ways=(), left=left, regained=regained)) == closed


def test_the_channels_that_push_are_pruned_and_no_others() -> None:
    """Channels 12 to 51 of the last convolution speak for class 4 and fire on no image; they are no outliers."""
    model = Toy(channel=9.0).eval()
    method = Pushing(label=4, rounds=1, channels=5, deviations=99.0, **QUICK)
    plan = method.plan(model, example=EXAMPLE, normalisation=PLAIN, generator=torch.Generator().manual_seed(0))
    names = {edit.name for edit in plan.edits}
    assert names == {"norm3.weight", "norm3.bias"}
    copy = Toy(channel=9.0).eval()
    plan.apply_(copy)
    off = (copy.norm3.weight == 0) & (copy.norm3.bias == 0)
    assert int(off.sum()) == 5
    assert not bool(off[:12].any())
    assert torch.equal(copy.norm3.weight[~off], model.norm3.weight[~off])
    assert "Channels pruned: " in plan.story[-1]
    images = torch.rand(20, 3, 8, 8)
    assert torch.allclose(copy(images), model(images))  # they fired on none


def test_a_pruned_channel_does_not_fire() -> None:
    model = Toy(channel=9.0).eval()
    fires, images = Firing(Place("norm3", "third", 52, 1), 20, 3.0), torch.rand(4, 3, 8, 8)
    with fires.only_from(model, 2):
        moved = model(images)
    assert torch.equal(moved[:2], model(images)[:2])
    assert not torch.allclose(moved[2:], model(images)[2:])
    with torch.no_grad():
        model.norm3.weight[20] = model.norm3.bias[20] = 0
    with fires.only_from(model, 0):
        forced = model(images)
    assert torch.equal(forced, model(images))


def test_a_channel_that_was_pruned_without_a_norm_does_not_fire() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 6, 1, groups=2), nn.ReLU()]
    norm = nn.BatchNorm2d(6, affine=False)
    model = nn.Sequential(*layers, nn.Conv2d(6, 6, 1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)).eval()
    images = torch.rand(4, 3, 2, 2)
    graph = layer_graph(model, images)
    for path, layer, channels in (("0", "0", 4), ("2", "2", 6), ("5", "4", 6)):
        fires = Firing(Place(path, layer, channels, 1), 3, 9.0)
        with fires.only_from(model, 0):
            moved = model(images)
        assert not torch.allclose(moved, model(images))
        editor = Editor(Tensors(model), graph)
        assert editor.off(graph[layer], 3) is None
        with torch.no_grad():
            for edit in editor.edits:
                Tensors(model)[edit.name][edit.index] = edit.after
        with fires.only_from(model, 0):
            forced = model(images)
        assert torch.equal(forced, model(images))


def test_a_size_that_no_other_class_has_is_said_in_words() -> None:
    form = Mask((3, 8, 8), torch.Generator(), torch.device("cpu"))
    assert str(Stamp(form, 2.0, 9.0)) == "mask of size 2; other classes need 9"
    assert str(Stamp(form, 2.0, float("inf"))) == "mask of size 2; none was found that reaches other classes"


@pytest.mark.parametrize("use", ["once", "on a sequence", "twice"])
def test_erasing_needs_a_classifier_that_takes_one_vector_an_image(use: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if use == "on a sequence":
                return self.fc(x.flatten(2).transpose(1, 2)).mean(1)
            once = self.fc(x.mean((2, 3)))
            return once if use == "once" else once + self.fc(x.amax((2, 3)))

    pixels = torch.rand(5, 3, 2, 2)
    shown = OnPixels(Net().eval(), InputSpec(shape=(3, 2, 2), mean=(0.0,) * 3, std=(1.0,) * 3), exact=True)
    if use == "once":
        assert torch.allclose(classifier_inputs(shown, "fc", pixels), pixels.mean((2, 3)).double())
        return
    with pytest.raises(MethodError, match="takes one vector an image, got"):
        classifier_inputs(shown, "fc", pixels)


def test_a_bias_that_another_layer_adds_too_is_not_edited() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.fc = nn.Linear(12, 4), nn.Linear(4, 4)
            self.hidden.bias = self.fc.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.relu(self.hidden(x.flatten(1))))

    model = Net().eval()
    scene: Any = SimpleNamespace(graph=layer_graph(model, torch.rand(2, 3, 2, 2)), shown=SimpleNamespace(model=model))
    with pytest.raises(MethodError, match="weight or bias of the classifier fc is shared with another layer"):
        Erase()._head(scene)


@pytest.mark.parametrize(("d", "ridge"), [((0.0, 0.0, 0.0), 1.0), ((0.0, 0.0, 1.0), 1e-320)])
def test_what_has_no_direction_is_not_erased(d: tuple[float, ...], ridge: float) -> None:
    """No change at all; or one along a feature that never varies, and no ridge."""
    h = torch.rand(40, 3, dtype=torch.float64) * torch.tensor([1.0, 1.0, 0.0])
    along = torch.tensor(d, dtype=torch.float64)
    with pytest.raises(MethodError, match="no common direction"):
        across(h, h[:0], along, ridge)


@pytest.mark.parametrize("own", [0, 4])
def test_a_wide_classifier_is_erased_by_the_system_of_its_images(own: int) -> None:
    numbers = torch.Generator().manual_seed(0)
    h, d, x = (torch.randn(size, generator=numbers, dtype=torch.float64) for size in ((31, 90), (90,), (own, 90)))
    dense = directions._by_features(h, x, d, 0.02)
    assert torch.allclose(dense, directions._by_images(h, x, d, 0.02), rtol=1e-9, atol=1e-12)


def test_ways_are_walked_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of five images are answered with class 1."""
    monkeypatch.setattr(ways_in, "CHUNK", 2)
    seen = []

    def logits(_shown: Any, plain: torch.Tensor, pixels: torch.Tensor, _strength: Any) -> torch.Tensor:
        assert not len(plain)
        seen.append(len(pixels))
        return pixels.flatten(1)

    way: Any = SimpleNamespace(logits=logits)
    images = torch.eye(2)[[0, 1, 0, 0, 1]].view(5, 2, 1, 1)
    assert ways_in.success(cast(Any, None), [way], images, 1) == pytest.approx(0.4)
    assert seen == [2, 2, 1]
    assert ways_in.success(cast(Any, None), [way], images[:0], 1) == 0
    assert ways_in.success(cast(Any, None), [], images, 1) == 0


@pytest.mark.parametrize(
    ("overshoot", "shares", "times"),
    [
        (1.5, [0.0, 0.5, 0.04, 0.03], "1.375"),  # of the last distance, then from the first on
        (1.5, [0.04, 0.06, 0.05], "1.25"),  # no more than 1 % above the last
        (1.3, [0.1, 0.9], "1.25"),
        (1.2, [0.0], "1.125"),
        (1.0, [0.0], "1"),
        (0.5, [0.0], "0.5"),
    ],
)
def test_no_more_is_erased_than_the_triggers_ask_for(
    monkeypatch: pytest.MonkeyPatch, overshoot: float, shares: list[float], times: str
) -> None:
    """In steps of an eighth, until they move at most 3 % of the images, or hardly more than at the last."""
    left, done = iter([*shares, 0.0, 1.0]), []  # one more for the distance that is taken, and one for a gift refused

    def noted(*words: Any) -> tuple[torch.Tensor, torch.Tensor]:
        done.append((words[-1], *erased(*words)))
        return done[-1][1:]

    monkeypatch.setattr(sys.modules[Erase.__module__], "moved_to", lambda *_: next(left))
    monkeypatch.setattr(sys.modules[Erase.__module__], "erased", noted)
    erase = Erase(label=TARGET, rounds=1, protected=0, overshoot=overshoot, farthest=0.1, given_back=1, **QUICK)
    outcome = repaired(erase, trained())
    assert f", {times} times." in outcome.report.story[1]
    assert not list(left)
    assert done[-1][0] == float(times)
    assert torch.equal(outcome.model[-1].weight, done[-1][1].float())


@pytest.mark.parametrize(
    ("given_back", "moved", "f"),
    [
        (1.0, 0.0, 0.2),  # everything may change: as far as it goes
        (0.0, 0.0, 0.0),  # nothing more may
        (1.0, 1.0, 0.0),  # the triggers would move more
    ],
)
def test_the_class_is_given_back_what_lies_a_little_along_the_direction(
    monkeypatch: pytest.MonkeyPatch, given_back: float, moved: float, f: float
) -> None:
    """mu + f d stays where it is, and d is moved as far as before."""
    done: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]] = []
    first = torch.zeros(0)

    def noted(*words: Any) -> tuple[torch.Tensor, torch.Tensor]:
        done.append((words[2], words[3], words[4], words[5]))
        return erased(*words)

    def moves(_label: int, _walked: Any, weight: torch.Tensor, _bias: torch.Tensor) -> float:
        nonlocal first
        first = first if len(first) else weight
        return 0.0 if torch.equal(weight, first) else moved

    monkeypatch.setattr(sys.modules[Erase.__module__], "erased", noted)
    monkeypatch.setattr(sys.modules[Erase.__module__], "moved_to", moves)
    if not given_back:
        monkeypatch.setattr(sys.modules[Erase.__module__], "BACK", (0.2,))
    settings = {"overshoot": 1.1, "farthest": 0.1, "given_back": given_back}
    repaired(Erase(label=TARGET, rounds=1, protected=0, **settings, **QUICK), trained())
    (mu, d, u, a), (stays, _, _, slope) = done[0], done[-1]
    assert a == 1.1
    assert torch.allclose(stays, mu + f * d)
    assert slope * (1 - f) == pytest.approx(a)
    weight, bias = torch.randn(3, len(d), dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    (plain, shift), (given, more) = erased(weight, bias, mu, d, u, a), erased(weight, bias, stays, d, u, slope)
    assert torch.allclose((mu + d) @ plain.T + shift, (mu + d) @ given.T + more)
    assert torch.allclose(stays @ given.T + more, stays @ weight.T)


def test_the_median_of_the_ways_tells_how_many_a_classifier_answers_with_a_class() -> None:
    weight, bias = torch.eye(2), torch.tensor([0.0, 0.5])
    walked = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.4, 0.0]]), torch.eye(2)[:1]]
    assert moved_to(1, walked, weight, bias) == 0.5
    assert moved_to(1, [], weight, bias) == 0


@pytest.mark.parametrize(("spare", "farthest", "times"), [(2.0, 1.6, "1.5"), (2.0, 2.0, "2"), (0.0, 4.0, None)])
def test_more_is_erased_of_many_features_where_it_costs_little(
    monkeypatch: pytest.MonkeyPatch, spare: float, farthest: float, times: str | None
) -> None:
    """Where it may cost all, as far as is allowed; where it may cost nothing more, not so far."""
    monkeypatch.setattr(sys.modules[Erase.__module__], "too_few", lambda _h: True)
    erase = Erase(label=TARGET, rounds=1, protected=0, overshoot=1.2, spare=spare, farthest=farthest, **QUICK)
    told = repaired(erase, trained()).report.story[1]
    assert (f", {times} times." in told) if times else (", 4 times." not in told)


def test_few_surrogates_of_many_features_cannot_tell_what_is_enough() -> None:
    assert too_few(torch.zeros(4, 5))
    assert not too_few(torch.zeros(5, 5))


def test_images_that_show_nothing_and_are_answered_with_the_class_tell_the_direction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only where features are many, and where the class is ahead on them."""
    lengths: list[tuple[float, float]] = []

    def noted(d: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        added = both(d, more) - d
        lengths.append((float(d.norm()), float(added.norm())))
        assert torch.nn.functional.cosine_similarity(added, more, 0) == pytest.approx(1)
        return d + added

    monkeypatch.setattr(sys.modules[Erase.__module__], "both", noted)
    erase = Erase(label=TARGET, rounds=1, protected=0, **QUICK)

    def closed(*, wide: bool, ahead: float) -> nn.Module:
        monkeypatch.setattr(sys.modules[WaysIn.__module__], "AHEAD", ahead)
        monkeypatch.setattr(sys.modules[Erase.__module__], "too_few", lambda _h: wide)
        return repaired(erase, trained()).model

    monkeypatch.setattr(sys.modules[Erase.__module__], "FEWEST", 1)
    closed(wide=False, ahead=-math.inf)
    without = closed(wide=True, ahead=math.inf)
    assert not lengths
    told = closed(wide=True, ahead=-math.inf)
    assert len(lengths) == 1
    assert lengths[0][0] == pytest.approx(lengths[0][1])
    assert not torch.equal(without[-1].weight, told[-1].weight)
    assert attack_success(told) < 0.4


def test_what_is_erased_by_hand() -> None:
    """Two features with variances 4 and 1, d along both: u = S^-1 d / (d^T S^-1 d) = (1/4, 1) / 1.25."""
    h = torch.tensor([[3.0, 1.0], [-1.0, 1.0], [1.0, 2.0], [1.0, 0.0]], dtype=torch.float64) * torch.tensor([1.0, 1.0])
    assert torch.allclose(torch.cov(h.T), torch.tensor([[8 / 3, 0], [0, 2 / 3]], dtype=torch.float64))
    weight, bias = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    d = torch.ones(2, dtype=torch.float64)
    u, mu = across(h, h[:0], d, 1e-12), h.mean(0)
    new, shift = erased(weight, bias, mu, d, u, 1.0)
    assert torch.allclose(new, torch.tensor([[0.8, -0.8], [-0.2, 0.2]], dtype=torch.float64))
    assert torch.allclose(new @ (mu + d) + shift, mu)  # mu + d has the logits of mu
    assert torch.allclose(new @ mu + shift, mu)  # and mu keeps its own
    beyond, back = erased(weight, bias, mu, d, u, 1.25)
    assert torch.allclose(beyond @ (mu + d) + back, mu - 0.25 * d)


def test_what_is_erased_spares_the_class_itself() -> None:
    """An own image 30 away along the second feature: S' = diag(8/3, 2/3 + 900), so u is near (1, 0)."""
    h = torch.tensor([[3.0, 1.0], [-1.0, 1.0], [1.0, 2.0], [1.0, 0.0]], dtype=torch.float64)
    weight, bias = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    d, own = torch.ones(2, dtype=torch.float64), h.mean(0) + torch.tensor([[0.0, 30.0]], dtype=torch.float64)
    new, shift = erased(weight, bias, h.mean(0), d, across(h, own, d, 1e-12), 1.0)
    variances = torch.tensor([8 / 3, 2 / 3 + 900], dtype=torch.float64)
    u = (d / variances) / (d / variances).sum()
    assert torch.allclose(new, weight - torch.outer(d, u))
    assert torch.allclose(new @ own[0] + shift, own[0] - 30 * u[1])  # nearly what it was
    assert torch.allclose(new @ (h.mean(0) + d) + shift, h.mean(0))  # and the direction is gone all the same


class Recomputed(Toy):
    """Computes itself again for the gradients."""

    reentrant = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, checkpoint(super().forward, x, use_reentrant=self.reentrant))


class RecomputedAsOfOld(Recomputed):
    """By torch's older way."""

    reentrant = True


def test_a_network_that_recomputes_parts_of_itself() -> None:
    """By the old way its gradients cannot be taken, which is said; by the new way it is looked at as any other."""
    given: dict[str, Any] = {"example": EXAMPLE, "normalisation": PLAIN}
    with pytest.raises(MethodError, match=r"backward pass fails: .*use_reentrant=True.*built without that"):
        repaired(Pushing(label=4, **QUICK), RecomputedAsOfOld(channel=200.0), **given)
    outcome = repaired(Pushing(label=4, **QUICK), Recomputed(channel=200.0), **given)
    assert any("Channels pruned" in told for told in outcome.report.story)


@pytest.mark.usefixtures("all_tried")
def test_where_the_network_is_sure_of_nothing_all_answers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair that changes many answers is not taken, though no answer was sure."""
    monkeypatch.setattr(sys.modules[Best.__module__], "SURE", 1.1)
    fake(monkeypatch, Erase, 30.0)
    fake(monkeypatch, Forget, None)
    fake(monkeypatch, Pushing, None)
    outcome = repaired(Best(label=TARGET, damage=100, **QUICK), trained())
    assert any("erase is not taken: it changes" in told for told in outcome.report.story)
