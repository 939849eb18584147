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
from unbackdoor.defender.case import Case, Progress, part, silent
from unbackdoor.defender.channel_triggers import channel_triggers
from unbackdoor.defender.directions import genuine
from unbackdoor.defender.head import classifier
from unbackdoor.defender.look import Look, look
from unbackdoor.defender.on_pixels import OnPixels, folded, on_pixels
from unbackdoor.defender.photographs import photographs
from unbackdoor.defender.stimulation import Firing, moved, strongest
from unbackdoor.defender.surrogates import LONG, class_images
from unbackdoor.defender.triggers import Trigger
from unbackdoor.defender.ways_in import (
    CHANNELS,
    Way,
    easy_channels,
    easy_together,
    easy_triggers,
    regained,
    search,
    success,
    usual_sizes,
    usual_together,
)
from unbackdoor.defender.witnessed import witnessed
from unbackdoor.errors import MethodError, SettingError
from unbackdoor.findings import Witness
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph.tensors import Tensors
from unbackdoor.prune import Plan, rewritten
from unbackdoor.settings import setting

#: Channels that are looked at again after an edit.
WATCHED = 60
#: Crops of photographs for each class impression of the look.
CROPS = 2
#: Images on which it is told how many are still moved; there are up to `WATCHED` ways, and each is tried on all.
TOLD = 200


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Surrogates, and what the network answered to them before it was edited.

    Attributes:
        images: (N, C, H, W) in [0, 1]: crops of photographs, class impressions, and averages of one of either.
        logits: (N, classes).
        whole: how many of the first images are no averages.
    """

    images: Tensor
    logits: Tensor
    whole: int

    @property
    def answers(self) -> Tensor:
        """(N,) the network's before it was edited."""
        return self.logits.argmax(1)

    def answered_by(self, shown: OnPixels) -> Pool:
        """The same surrogates, with what a network answers now: one that was repaired for another class."""
        return dataclasses.replace(self, logits=shown.logits(self.images))

    def others(self, label: int) -> Tensor:
        """(K, C, H, W) those that are no averages and were not answered with a class."""
        return self.images[: self.whole][self.answers[: self.whole] != label]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A network that is being repaired, and what is known of it.

    Attributes:
        shown: the network; it may be edited in place.
        graph: its layers.
        seen: what the witnesses saw before any edit.
        pool: surrogates.
        generator: of everything that is drawn.
        progress: called with (done, total, a note).
    """

    shown: OnPixels
    graph: LayerGraph
    seen: Look
    pool: Pool
    generator: torch.Generator
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How easily the class is reached in a network as it is.

    Attributes:
        triggers: of a new search.
        ways: those of them that are easy, and channels, by turns; the easiest first.
        left: the share of the surrogates that easy ways of another search still move to the class, by their median: a
            way that is no part of the backdoor must not decide.
        regained: what triggers have regained that were easy at first (`defender.ways_in`); None where it is not known.
    """

    triggers: Sequence[Trigger]
    ways: Sequence[Way]
    left: float
    regained: float | None

    def __str__(self) -> str:
        text = f"easy ways of another search move {self.left:.0%} of the images by their median"
        if self.regained is None:
            return text
        return f"{text}, and triggers are {self.regained:.0%} of the way, in factors, to what other classes need"


class OutOfTime(Exception):
    """A time limit ran out, as a scene's progress may say."""


class WaysIn:
    """Looks for easy ways into a class, again and again while the network changes.

    Args:
        scene: with the network before any edit, on which it is measured what other classes need.
        label: the class.
        steps: of Adam in the search for a trigger.

    Attributes:
        label: the class.
        first: how easily the class is reached before any edit.
        firings: the channels that pushed hardest to the class before any edit.
        genuine: (K, C, H, W) crops of photographs that show the class (`defender.directions`); K may be 0.
    """

    def __init__(self, scene: Scene, label: int, steps: int) -> None:
        self.label = label
        self._seen, self._generator, self._steps = scene.seen, scene.generator, steps
        self._graph = scene.graph
        shown, seen, pool = folded(scene.shown, scene.graph), scene.seen, scene.pool
        self._pixels = pool.images[: pool.whole]
        self._usual = usual_sizes(shown, self._pixels, pool.answers[: pool.whole], label, scene.generator, steps=steps)
        self._usual_together = usual_together(
            scene.shown, scene.graph, self._pixels, pool.answers[: pool.whole], label, scene.generator
        )
        self.firings: list[Firing] = []
        if seen.pushes:
            self.firings = strongest(scene.shown, scene.graph, seen.drawn, seen.pushes, label, most=WATCHED)
        triggers, ways = self._search(scene.shown, shown, part(scene.progress, 0, 0.1))
        # By a search of their own, with all channels that push: they tell how far a repair has come.
        self._others = ways
        if ways:
            self._others = self._search(scene.shown, shown, part(scene.progress, 0.1, 0.2), most=WATCHED)[1] or ways
        images = pool.others(label)
        self._told = images[torch.randperm(len(images), generator=scene.generator)[:TOLD]]
        left = success(shown, self._others, self._told, label)
        self.first = Standing(triggers=triggers, ways=ways, left=left, regained=0.0)
        self.genuine = images[:0]
        if ways and len(images):
            with contextlib.suppress(MethodError):  # without one classifier they cannot be told
                _, _, path = classifier(scene.graph, shown.model)
                self.genuine = genuine(shown, path, label, ways, images, scene.generator)

    def look(self, shown: OnPixels, progress: Progress = silent) -> Standing:
        """How easily the class is reached.

        Args:
            shown: the network as it is now.
            progress: called with (searches done, searches in all, a note).
        """
        quick = folded(shown, self._graph)
        triggers, ways = self._search(shown, quick, progress)
        return Standing(
            triggers=triggers,
            ways=ways,
            left=success(quick, self._others, self._told, self.label),
            regained=regained(self.first.triggers, triggers, self._usual),
        )

    def _search(
        self, shown: OnPixels, quick: OnPixels, progress: Progress, *, most: int = CHANNELS
    ) -> tuple[list[Trigger], list[Way]]:
        """New triggers of a network and its folded copy, and the easy ways: those of them, and so many channels."""
        label = self.label
        answers = quick.logits(self._pixels).argmax(1)
        pixels = self._pixels[answers != label]
        triggers = search(quick, pixels, label, self._generator, progress, steps=self._steps)
        easy: list[Way] = [*easy_triggers(triggers, self._usual)]
        if len(pixels):
            together = channel_triggers(shown, self._graph, self._pixels, answers, [label], self._generator)
            easy += [way for one in together for way in easy_together(one, self._usual_together)]
        shares = moved(quick, self.firings, self._seen.drawn, label)
        channels = easy_channels(zip(self.firings, shares, strict=True), most=most)
        ways: list[Way] = []
        for place in range(max(len(easy), len(channels))):
            ways += [*easy[place : place + 1], *channels[place : place + 1]]
        return triggers, ways


@dataclass(frozen=True, kw_only=True)
class Looking(Defence):
    """A defence that asks the witnesses which class to close. Where they suspect none, nothing is changed."""

    version: ClassVar[int] = 6
    needs_gradients: ClassVar[bool] = True
    paper: ClassVar[None] = None

    label: int = setting(-1, "the class to close; -1 asks the witnesses", least=-1, own=True)
    surrogates: int = setting(
        200,
        "class impressions; a repair has half as many again, and twice as many crops of photographs",
        least=2,
        own=True,
    )
    search_steps: int = setting(60, "of Adam in the search for a trigger", least=1, own=True)
    closed: float = setting(
        0.03,
        "a class is closed once easy ways of another search move at most this share of the images, by their median",
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

    def plan_for(self, case: Case) -> Plan:
        """Look, close the suspected classes on a copy, and put down what changed."""
        graph = case.layers()
        original = case.module
        case = dataclasses.replace(case, graph=graph)
        with case.working(self.name) as model:
            shown, note = on_pixels(case, model)
            if self.label >= shown.classes:
                raise SettingError(f"label: expected a class below {shown.classes}, got {self.label}")
            seen = look(
                shown,
                graph,
                case.rng,
                part(case.progress, 0, 0.5),
                count=self.surrogates,
                steps=self.search_steps,
            )
            witness = witnessed(shown, seen, note, case.rng.initial_seed())
            suspects = seen.verdict.suspects if self.label < 0 else (self.label,)
            story = [_suspicion(witness, given=self.label)]
            if suspects:
                scene = Scene(
                    shown=shown,
                    graph=graph,
                    seen=seen,
                    pool=_pool(shown, seen, case.rng),
                    generator=case.rng,
                    progress=case.progress,
                )
                for number, label in enumerate(suspects):
                    ends = [0.5 + 0.5 * (number + more) / len(suspects) for more in (0, 1)]
                    pool = scene.pool.answered_by(shown) if number else scene.pool
                    here = dataclasses.replace(scene, pool=pool, progress=part(case.progress, *ends))
                    before = held(model)
                    try:
                        search = WaysIn(here, label, self.search_steps)
                        story += self.close(dataclasses.replace(here, progress=part(here.progress, 0.2, 1)), search)
                    except OutOfTime:
                        if not number:
                            raise
                        story.append(f"The time ran out, so nothing was changed for class {label}.")
                        break
                    except MethodError as error:
                        if not number:
                            raise
                        put_back(model, before)
                        story.append(f"Nothing was changed for class {label}: {error}")
            edits = rewritten(original, model, method=self.name) if suspects else ()
        needless = self.label >= 0 and witness.p is None  # where a class is given, no witness has to tell
        return Plan(
            method=self.name,
            settings=self.settings(),
            graph=graph,
            selections=(),
            classifier=None,
            edits=edits,
            witness=None if needless else witness,
            story=tuple(story),
        )


@dataclass(frozen=True, kw_only=True)
class InRounds(Looking):
    """One that closes easy ways, looks again, and so on until the class is closed."""

    #: Overridden with each method's own default.
    rounds: int = setting(1, "searches for easy ways, each followed by an edit", least=1, own=True)

    @abstractmethod
    def begin(self, scene: Scene, search: WaysIn) -> Callable[[Sequence[Way]], str]:
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
    def for_once(self, scene: Scene, search: WaysIn, ways: Sequence[Way]) -> Iterator[OnPixels]:
        """Within, the ways were closed by one round; then the network is as it was. Raises as `begin`."""
        kept = held(scene.shown.model)
        self.begin(scene, search)(ways)
        try:
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
            done = step(ways)
            told = part(scene.progress, number / self.rounds, (number + 1) / self.rounds)
            standing = search.look(scene.shown, told)
            if standing.left > last.left and (standing.regained or 0.0) <= (last.regained or 0.0):
                put_back(model, kept)
                yield f"Round {number + 1} made it worse, and was undone.", last
                return
            yield (
                f"Round {number + 1}: {len(ways)} easy ways into class {label}, the first: {ways[0]}. {done} Now "
                f"{standing}.",
                standing,
            )
            last, ways = standing, standing.ways
            if self.is_closed(standing) or not ways:
                return


def _suspicion(witness: Witness, *, given: int) -> str:
    """What is to be closed, and why."""
    if given >= 0:
        alone = "" if witness.p is not None else " The witnesses by themselves cannot tell."
        return f"Class {given} was given as the one to close.{alone}"
    if witness.suspects:
        named = ", ".join(str(label) for label in witness.suspects)
        return f"The witnesses suspect class {named} (p = {witness.p:.3g}, {witness.honest} honest networks)."
    if witness.p is None:
        return "The witnesses cannot tell whether a class is too easy to reach, so nothing was changed."
    return (
        f"No class is suspected (p = {witness.p:.3g}, {witness.honest} honest networks), so nothing was changed. This "
        "does not prove that the network has no backdoor."
    )


def _pool(shown: OnPixels, seen: Look, generator: torch.Generator) -> Pool:
    count = len(seen.made.images)
    made = torch.cat([seen.made.images, class_images(shown, count // 2, generator, steps=LONG).images])
    crops = photographs(CROPS * count, shown.spec, generator)
    mixed = (made + photographs(len(made), shown.spec, generator)) / 2
    images = torch.cat([crops, made, mixed])
    return Pool(images=images, logits=shown.logits(images), whole=len(crops) + len(made))


def held(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a network's tensors, by names of its own."""
    return {name: tensor.detach().clone() for name, tensor in Tensors(model).items()}


@torch.no_grad()
def put_back(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Write tensors into a network, in place, by names of its own: a network may change what its state dict holds."""
    for name, tensor in Tensors(model).items():
        tensor.copy_(kept[name])
