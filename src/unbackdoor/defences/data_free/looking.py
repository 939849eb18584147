"""What data-free defences share that look at the network first: they close the class that the witnesses suspect."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.defences.base import Defence
from unbackdoor.defences.data_free.scene import OutOfTime, Scene, Standing, WaysIn, pool_of
from unbackdoor.defender.case import Case, Progress, part
from unbackdoor.defender.look import Look, look
from unbackdoor.defender.on_pixels import OnPixels, on_pixels
from unbackdoor.defender.ways_in import FEWEST, STRONGER, Way
from unbackdoor.defender.witnessed import witnessed
from unbackdoor.errors import MethodError, SettingError
from unbackdoor.findings import NO_PROOF, Witness
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph.tensors import Tensors
from unbackdoor.prune import Plan, rewritten
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class Looking(Defence):
    """A defence that asks the witnesses which class to close. Where they suspect none, nothing is changed, unless the
    method closes a doubtful class."""

    version: ClassVar[int] = 15
    needs_gradients: ClassVar[bool] = True
    paper: ClassVar[None] = None

    label: int = setting(-1, "the class to close; -1 asks the witnesses", least=-1, own=True)
    surrogates: int = setting(
        200,
        "class impressions, half as many where one image takes 2e8 operations or more; a repair has half as many "
        "again, and twice as many crops of photographs",
        least=2,
        own=True,
    )
    search_steps: int = setting(60, "of Adam in the search for a trigger", least=1, own=True)
    closed: float = setting(
        0.05,
        f"a class is closed once ways of another search, triggers {STRONGER:g} times as strong, move at most this "
        f"share of the images, by their median; channels count only beside fewer than {FEWEST} triggers",
        least=0,
        most=1,
        own=True,
    )
    regained: float = setting(
        0.6,
        "... and triggers are at least this far, in factors, on the way to what other classes need",
        least=0,
        most=1,
        own=True,
    )

    def doubtful(self, witness: Witness) -> int | None:
        """The class that is closed if that costs little, where none is suspected and none was given; None: no class."""
        del witness
        return None

    def is_closed(self, standing: Standing) -> bool:
        """Whether a class is closed."""
        return standing.left <= self.closed and (standing.regained is None or standing.regained >= self.regained)

    @abstractmethod
    def close(self, scene: Scene, search: WaysIn) -> list[str]:
        """Edit the scene's network until the ways into a class are closed.

        Args:
            scene: its network may have been edited before.
            search: for easy ways into the class.

        Returns:
            What was done, in sentences.

        Raises:
            MethodError: the method cannot work on this network.
            OutOfTime: the time ran out, and nothing was edited for the class.
        """

    def _look(self, shown: OnPixels, graph: LayerGraph, generator: torch.Generator, progress: Progress) -> Look:
        """At the network as it is now."""
        return look(shown, graph, generator, progress, count=self.surrogates, steps=self.search_steps)

    def plan_for(self, case: Case) -> Plan:
        """Look, close the suspected classes on a copy, and put down what changed.

        Of several classes each is closed only if it is still suspected once those before are.
        """
        graph = case.layers()
        original = case.module
        case = dataclasses.replace(case, graph=graph)
        with case.working(self.name) as model:
            shown, note = on_pixels(case, model)
            if self.label >= shown.classes:
                raise SettingError(f"label: expected a class below {shown.classes}, got {self.label}")
            seen = self._look(shown, graph, case.rng, part(case.progress, 0, 0.45))
            witness = witnessed(shown, seen, note, case.rng.initial_seed())
            sure = (self.label,) if self.label >= 0 else seen.verdict.suspects
            doubtful = None if sure else self.doubtful(witness)
            story = [_suspicion(witness, given=self.label, doubtful=doubtful)]
            labels = sure if doubtful is None else (doubtful,)
            if labels:
                try:
                    self._close_each(shown, graph, seen, labels, case, story)
                except (MethodError, OutOfTime) as error:
                    if doubtful is None:
                        raise
                    why = "the time ran out" if isinstance(error, OutOfTime) else f"it cannot be closed here ({error})"
                    story.append(unchanged(doubtful, why))
            edits = rewritten(original, model, method=self.name) if labels else ()
        needless = self.label >= 0 and witness.p is None  # where a class is given, no witness has to tell
        return Plan(
            method=self.name,
            settings=self.settings(),
            graph=graph,
            selections=(),
            classifier=None,
            edits=edits,
            witness=None if needless else witness,
            doubtful=doubtful if edits else None,
            story=tuple(story),
        )

    def _close_each(
        self,
        shown: OnPixels,
        graph: LayerGraph,
        seen: Look,
        labels: Sequence[int],
        case: Case,
        story: list[str],
    ) -> None:
        """Close one class after the other in the network that is shown, and tell the story.

        Raises as `close`, for the first class; nothing was edited then.
        """
        model = shown.model
        scene = Scene(
            shown=shown,
            graph=graph,
            seen=seen,
            pool=pool_of(shown, seen, case.rng, part(case.progress, 0.45, 0.5)),
            generator=case.rng,
            progress=case.progress,
        )
        before: dict[str, Tensor] = {}
        for number, label in enumerate(labels):
            ends = [0.5 + 0.5 * (number + more) / len(labels) for more in (0, 1)]
            told = part(case.progress, *ends)
            last, before = before, held(model)
            try:
                if number and any(not torch.equal(tensor, last[name]) for name, tensor in before.items()):
                    seen = self._look(shown, graph, case.rng, part(told, 0, 0.3))
                    scene = dataclasses.replace(scene, seen=seen, pool=scene.pool.answered_by(shown))
                    told = part(told, 0.3, 1)
                if number and label not in seen.verdict.suspects:
                    story.append(f"Class {label} is no longer suspected, so nothing was changed for it.")
                    continue
                here = dataclasses.replace(scene, progress=told)
                search = WaysIn(here, label, self.search_steps)
                story += self.close(dataclasses.replace(here, progress=part(here.progress, 0.2, 1)), search)
            except OutOfTime:
                if not number:
                    raise
                story.append(f"The time ran out, so nothing was changed for class {label}.")
                break
            except MethodError as error:
                put_back(model, before)
                if not number:
                    raise
                story.append(f"Nothing was changed for class {label}: {error}")


#: What a round does to the network against some ways; it tells how far it is, and says what it did.
Step = Callable[[Sequence[Way], Progress], str]


@dataclass(frozen=True, kw_only=True)
class InRounds(Looking):
    """One that closes easy ways, looks again, and so on until the class is closed."""

    #: Overridden with each method's own default.
    rounds: int = setting(1, "searches for easy ways, each followed by an edit", least=1, own=True)

    @abstractmethod
    def begin(self, scene: Scene, search: WaysIn) -> Step:
        """What a round does: it edits the scene's network against some ways, and says how.

        Args:
            scene, search: as in `close`.

        Raises:
            MethodError: as in `close`.
        """

    def close(self, scene: Scene, search: WaysIn) -> list[str]:
        """The rounds."""
        if not search.first.ways:
            return [f"No easy way into class {search.label} was found."]
        return [said for said, _ in self.each_round(scene, search, search.first)]

    @contextlib.contextmanager
    def for_once(self, scene: Scene, search: WaysIn, ways: Sequence[Way], progress: Progress) -> Iterator[OnPixels]:
        """Within, the ways were closed by one round; then the network is as it was. Raises as `begin`.

        The progress stays where it is: this is a small part of the work around it.
        """
        kept = held(scene.shown.model)
        try:
            self.begin(scene, search)(ways, part(progress, 0, 0))
            yield scene.shown
        finally:
            put_back(scene.shown.model, kept)

    def each_round(self, scene: Scene, search: WaysIn, start: Standing) -> Iterator[tuple[str, Standing]]:
        """Close the ways, and look again, until the class is closed, no way is easy, or it gets worse.

        Args:
            scene, search: as in `close`.
            start: how easily the class is reached in the network as it is; its ways are closed first.

        Yields:
            After each round what was done, and how easily the class is reached then.
        """
        label, model, step = search.label, scene.shown.model, self.begin(scene, search)
        last, ways = start, start.ways
        for number in range(self.rounds):
            kept = held(model)
            told = part(scene.progress, number / self.rounds, (number + 1) / self.rounds)
            done = step(ways, part(told, 0, 0.5))
            standing = search.look(scene.shown, part(told, 0.5, 1))
            if standing.left > last.left and (standing.regained or 0.0) <= (last.regained or 0.0):
                put_back(model, kept)
                yield f"Round {number + 1} made it worse, and was undone.", last
                return
            easy = "1 easy way" if len(ways) == 1 else f"{len(ways)} easy ways"
            yield (
                f"Round {number + 1}: {easy} into class {label}, the first: {ways[0]}. {done} Now {standing}.",
                standing,
            )
            last, ways = standing, standing.ways
            if self.is_closed(standing) or not ways:
                return


def _suspicion(witness: Witness, *, given: int, doubtful: int | None) -> str:
    """What is to be closed, and why."""
    if given >= 0:
        alone = "" if witness.p is not None else " The witnesses by themselves cannot tell."
        return f"Class {given} was given as the one to close.{alone}"
    if witness.suspects:
        named = ", ".join(str(label) for label in witness.suspects)
        return f"The witnesses suspect class {named} (p = {witness.p:.3g}, {witness.honest} honest networks)."
    if witness.p is None:
        return "The witnesses cannot tell whether a class is too easy to reach, so nothing was changed."
    none = f"No class is suspected (p = {witness.p:.3g}, {witness.honest} honest networks)"
    if doubtful is not None:
        return f"{none}. Class {doubtful} stands out most, and is closed only if that costs little. {NO_PROOF}"
    return f"{none}, so nothing was changed. {NO_PROOF}"


def unchanged(label: int, why: str) -> str:
    """What the story says where a weak suspicion comes to nothing."""
    return f"Class {label} is not suspected, and {why}: nothing was changed."


def held(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a network's tensors, by names of its own."""
    return {name: tensor.detach().clone() for name, tensor in Tensors(model).items()}


@torch.no_grad()
def put_back(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Write tensors into a network, in place, by names of its own: a network may change what its state dict holds."""
    for name, tensor in Tensors(model).items():
        tensor.copy_(kept[name])
