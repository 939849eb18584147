"""A network that is being repaired, and the ways into the class that is to be closed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unbackdoor.defences.data_free.directions import along
from unbackdoor.defender.case import Progress, part, silent
from unbackdoor.defender.channel_triggers import channel_triggers
from unbackdoor.defender.head import classifier
from unbackdoor.defender.leaves import leaves
from unbackdoor.defender.look import Look
from unbackdoor.defender.on_pixels import OnPixels, folded
from unbackdoor.defender.photographs import answered_with, photographs
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
from unbackdoor.errors import MethodError
from unbackdoor.findings.layers import LayerGraph

#: Channels that are looked at again after an edit.
WATCHED = 60
#: Crops of photographs for each class impression of the look.
CROPS = 2
#: Crops of photographs among which examples of the class are looked for. Fewer than `FEWEST` say little of it. Those
#: that lie farther than `FAR` along the ways into it (`directions.along`) carry something like the trigger, and so do
#: some of more than `FAIR` times its share of the crops.
AMONG, FEWEST, FAR, FAIR = 3000, 8, 0.8, 1.5
#: Dead leaves are on a way into a class that is ahead by this much on them (`leaves.Leaves.leads`).
AHEAD = 1.0
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
        left: the share of the surrogates that easy ways of another search still move to the class
            (`defender.ways_in.success`). A median, since a way that is no part of the backdoor must not decide.
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
        second: ways of another search before any edit, with all channels that push; where it finds none, those of the
            first. They tell what a repair has left.
        judged_on: (K, C, H, W) in [0, 1], the images on which they tell it.
        firings: the channels that pushed hardest to the class before any edit.
        examples: (K, C, H, W) crops of photographs that are answered with the class before any edit, for a repair to
            keep; K may be 0. Those that lie on the ways themselves are left out, and of too many the farthest along.
        held_out: as many others, to tell how many it kept; where crops are few, impressions of the class are among
            them, though they may carry the trigger.
        leaves: (K, C, H, W) images that show nothing and are answered with the class before any edit; none where the
            class is not ahead on them.
    """

    def __init__(self, scene: Scene, label: int, steps: int) -> None:
        self.label = label
        self._seen, self._generator, self._steps = scene.seen, scene.generator, steps
        self._graph = scene.graph
        shown, seen, pool = folded(scene.shown, scene.graph), scene.seen, scene.pool
        self._pixels = pool.images[: pool.whole]
        answers = pool.answers[: pool.whole]
        told = [part(scene.progress, *ends) for ends in ((0, 0.08), (0.08, 0.1), (0.1, 0.15), (0.15, 0.2))]
        self._usual = usual_sizes(shown, self._pixels, answers, label, scene.generator, told[0], steps=steps)
        self._usual_together = usual_together(
            scene.shown, scene.graph, self._pixels, answers, label, scene.generator, told[1]
        )
        self.firings: list[Firing] = []
        if seen.pushes:
            self.firings = strongest(scene.shown, scene.graph, seen.drawn, seen.pushes, label, most=WATCHED)
        triggers, ways = self._search(scene.shown, shown, told[2])
        self.second = ways
        if ways:
            self.second = self._search(scene.shown, shown, told[3], most=WATCHED)[1] or ways
        images = pool.others(label)
        self.judged_on = images[torch.randperm(len(images), generator=scene.generator)[:TOLD]]
        left = success(shown, self.second, self.judged_on, label)
        self.first = Standing(triggers=triggers, ways=ways, left=left, regained=0.0)
        drawn = leaves(shown, scene.generator)
        self.leaves = drawn.of(label)[: None if drawn.leads[label] >= AHEAD else 0]
        found = answered_with(shown, label, AMONG if ways else 0, scene.generator)
        if len(found):
            with contextlib.suppress(MethodError):  # without one classifier it cannot be told
                _, _, path = classifier(scene.graph, shown.model)
                far = along(shown, path, ways, images, found)
                nearest = far.argsort()[: round(FAIR * AMONG / shown.classes)]
                found = found[nearest[far[nearest] <= FAR]]
        self.examples, self.held_out = found[::2], found[1::2]
        if len(self.held_out) < FEWEST:
            self.held_out = torch.cat([self.held_out, self._pixels[answers == label]])

    def leaves_in(self, shown: OnPixels) -> Tensor:
        """(K, C, H, W) those of the leaves that are still answered with the class, in the network as it is now."""
        return self.leaves[shown.logits(self.leaves).argmax(1) == self.label] if len(self.leaves) else self.leaves

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
            left=success(quick, self.second, self.judged_on, self.label),
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


def pool_of(shown: OnPixels, seen: Look, generator: torch.Generator, progress: Progress = silent) -> Pool:
    """Surrogates for a repair: those of a look, half as many again that took longer, crops, and averages."""
    count = len(seen.made.images)
    more = class_images(shown, max(1, count // 2), generator, steps=LONG, progress=progress)
    made = torch.cat([seen.made.images, more.images])
    crops = photographs(CROPS * count, shown.spec, generator)
    mixed = (made + photographs(len(made), shown.spec, generator)) / 2
    images = torch.cat([crops, made, mixed])
    return Pool(images=images, logits=shown.logits(images), whole=len(crops) + len(made))
