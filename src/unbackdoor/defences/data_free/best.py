"""Best: several repairs are tried on copies; of those that close the suspected class, the cheapest is taken. It needs
no data, and has no paper of its own.

    left       the share of the surrogates that easy ways of another search still move to the class, by the median of
               the triggers; where these are few, of the channels, too (`defender.ways_in.success`)
    regained   how far triggers of a new search are, in factors, on the way to what other classes need
    changed    the share of the surrogates, answered with other classes, whose answer a repair changes
    sure       the same share, of those that the network was sure of; where there is none, of all
    damage     the points of accuracy that the damage meter predicts to be lost
    kept       of the images that are answered with the class (`scene.WaysIn.held_out`), the share that still is
    cost       `damage`, and `CLASS` points for the class itself, as far as it is not kept: the meter leaves it out

A repair closes the class if `left` is at most `closed` and `regained` at least that of the settings: a network that was
trained to resist some ways may give in to others that are nearly as easy.
Surrogates answered with the class itself do not count as changed: many of them carry the trigger. So a repair that
takes the class away with the trigger seems cheap. `kept` tells: crops of photographs that no repair has seen.
Erasing is tried first. If it closes the class and changes next to nothing (`ENOUGH`), no more is tried. Else pruning
what pushes (where something does) and forgetting are; if none closes the class, erasing is tried behind forgetting. A
repair that changes too many sure answers of other classes, or is predicted to do too much damage, is never taken. One
that keeps too few images of the class is taken only where all do: where the class was answered for its trigger alone
(SIG, which poisons all its images), nothing of it is left. Among the others that close the class, the one is taken that
costs least. Where none closes it, it is taken from those that leave least, give or take `closed`: so few images tell no
smaller difference.

Where no class is suspected, and the one that stands out most has a p of at most `doubt`, it is closed, too, if that
costs little (`SMALL`), and several easy ways lead to it (`SEVERAL`): one or two are found into classes of honest
networks, too. What leads to a class of an honest network is what the class looks like: closing it takes the class away,
and `kept` is small. Only erasing and pruning are tried there.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from unbackdoor.defences.base import DEFENCES
from unbackdoor.defences.data_free.erase import Erase
from unbackdoor.defences.data_free.forget import Forget
from unbackdoor.defences.data_free.looking import InRounds, Looking, put_back, unchanged
from unbackdoor.defences.data_free.pushing import Pushing
from unbackdoor.defences.data_free.scene import OutOfTime, Pool, Scene, Standing, WaysIn
from unbackdoor.defender import meter
from unbackdoor.defender.case import Case, Progress, part
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.ways_in import Channel
from unbackdoor.errors import MethodError
from unbackdoor.findings import Witness
from unbackdoor.graph.tensors import Tensors
from unbackdoor.prune import Plan, copy_model
from unbackdoor.settings import setting

NO_REPAIR = (
    "No repair works on this network at an acceptable cost, so nothing was changed. With most=1 and damage=100 one is "
    "taken at any cost (--most 1 --damage 100 --force)."
)
#: Repairs that are tried at most.
TRIALS = 4
#: The probability from which on the network is sure of an answer.
SURE = 0.7
#: `changed`, `sure` and `damage` up to which no cheaper repair is looked for, and the least `kept`.
ENOUGH, KEPT = (0.05, 0.01, 0.5), 0.8
#: Points of accuracy that the class itself is worth, as one of ten; where there are more, it matters no less.
CLASS = 10.0
#: The most that it may cost to close a class that is not suspected, in points; and the fewest easy ways into it.
SMALL, SEVERAL = 3.0, 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """What a repair came to.

    Attributes:
        name: of the repair.
        shown: the repaired copy.
        standing: how easily the class is reached in it; `left` and `regained`, see above.
        changed, sure, kept: see above, in [0, 1].
        damage: see above, in points.
        told: what it says of itself.
    """

    name: str
    shown: OnPixels
    standing: Standing
    changed: float
    sure: float
    kept: float
    damage: float
    told: tuple[str, ...]

    @property
    def cost(self) -> float:
        """See above, in points."""
        return self.damage + CLASS * (1 - self.kept)

    def __str__(self) -> str:
        return (
            f"{self.name} changes {self.changed:.1%} of the answers of other classes, and {self.sure:.1%} of the sure "
            f"ones, keeps {self.kept:.0%} of those of the class, and is predicted to lose {self.damage:.1f} points of "
            f"accuracy; {self.standing}"
        )


@dataclass(frozen=True, kw_only=True)
class Best(Looking):
    """Try the repairs that need no data, and take the one that closes the suspected class at the smallest cost."""

    name: ClassVar[str] = "best"
    title: ClassVar[str] = "Best of the data-free repairs"
    passes: ClassVar[str] = "about 240,000 passes of one generated image, for ten classes"

    most: float = setting(
        0.1,
        "a repair that changes a larger share of the sure answers of other classes is not taken",
        least=0,
        most=1,
        own=True,
    )

    damage: float = setting(
        3.0,
        "a repair that is predicted to lose more points of accuracy is not taken",
        least=0,
        most=100,
        own=True,
    )

    kept: float = setting(
        0.35,
        "a repair that keeps a smaller share of the answers of the class is taken only if all do",
        least=0,
        most=1,
        own=True,
    )

    doubt: float = setting(
        0.25,
        "where none is suspected and p is at most this, the class that stands out most is closed at little cost; 0: no",
        least=0,
        most=1,
        own=True,
    )

    time_limit: float = setting(
        0.0,
        "seconds after which no more is tried; 0 is none, and the same seed then gives the same result",
        least=0,
        most=1e7,
        own=True,
    )

    def within(self, points: float) -> Self:
        """With `damage` as low as that."""
        return dataclasses.replace(self, damage=min(self.damage, points))

    def plan_for(self, case: Case) -> Plan:
        """As any that looks, within the time."""
        if not self.time_limit:
            return super().plan_for(case)
        try:
            return super().plan_for(dataclasses.replace(case, progress=_until(self.time_limit, case.progress)))
        except OutOfTime as error:
            raise MethodError(
                f"{self.name}: the time limit of {self.time_limit:g} s ran out before a repair was found; nothing was "
                "changed; give more"
            ) from error

    def doubtful(self, witness: Witness) -> int | None:
        """The class that stands out most, if few honest networks have one that does so as much."""
        return None if witness.p is None or witness.p > self.doubt else witness.ranked[0].label

    def close(self, scene: Scene, search: WaysIn) -> list[str]:
        """Try, judge, choose."""
        label, ways = search.label, search.first.ways
        weak = self.label < 0 and label not in scene.seen.verdict.suspects
        if weak and len(ways) < SEVERAL:
            return [unchanged(label, f"fewer than {SEVERAL} easy ways into it were found")]
        if not ways:
            return [f"No easy way into class {label} was found, so nothing was changed for it."]
        more = f", and {len(ways) - 1} more" if len(ways) > 1 else ""
        story = [f"Class {label} is reached more easily than others: {ways[0]}{more}."]
        trials = self._trials(scene, search, story, weak=weak)
        chosen = self._chosen(trials, label, story)
        limit = min(SMALL, self.damage)
        if weak and not (chosen and self.is_closed(chosen.standing) and chosen.cost <= limit):
            why = f"no repair closes it for {limit:g} points or less, the class itself included"
            return [*story, unchanged(label, why)]
        if chosen is None:
            return [*story, NO_REPAIR]
        put_back(scene.shown.model, Tensors(chosen.shown.model))
        cheapest = "it closes the class at the smallest cost, the class itself included"
        verdict = cheapest if self.is_closed(chosen.standing) else "it leaves least, though not little"
        return [*story, *chosen.told, f"Chosen: {chosen.name} for class {label}, since {verdict}."]

    def _trials(self, scene: Scene, search: WaysIn, story: list[str], *, weak: bool) -> list[Trial]:
        """The repairs that were tried, without forgetting for a weak suspicion; each adds a sentence to the story."""
        trials: list[Trial] = []
        network = dataclasses.replace(scene.shown, exact=True)
        count, made = meter.count_for(meter.effort(network)), scene.seen.made.images
        seen = meter.meter_images(network, scene.generator, count=count, impressions=made)

        def tried(method: InRounds, behind: Trial | None = None) -> Trial | None:
            return self._try(scene, method, search, seen, trials, story, behind)

        try:
            erased = tried(Erase())
            if not (erased and self._is_enough(erased)):
                if any(isinstance(way, Channel) for way in search.first.ways):
                    tried(Pushing())
                if weak:
                    return trials
                forgotten = tried(Forget())
                closing = [trial for trial in trials if not self._too_dear(trial) and self.is_closed(trial.standing)]
                if forgotten and not any(trial.kept >= self.kept for trial in closing):
                    tried(Erase(rounds=1), behind=forgotten)
        except OutOfTime:
            if not trials:
                raise
            story.append(f"The time limit of {self.time_limit:g} s ran out, so no more was tried.")
        return trials

    def _chosen(self, trials: Sequence[Trial], label: int, story: list[str]) -> Trial | None:
        """The repair to take; None where all are too dear. Why others are not taken is added to the story."""
        dear = {trial.name: why for trial in trials if (why := self._too_dear(trial))}
        story += [f"{name} is not taken: {why}." for name, why in dear.items()]
        cheap = [trial for trial in trials if trial.name not in dear]
        if not cheap:
            return None
        sound = [trial for trial in cheap if trial.kept >= self.kept]
        if sound:
            story += [
                f"{trial.name} is not taken: it keeps only {trial.kept:.0%} of the answers of class {label}."
                for trial in cheap
                if trial not in sound
            ]
        else:
            story.append(
                f"After each repair, class {label} is another than before. Either it was answered for its trigger "
                "alone, or it may hardly be answered any more."
            )
        return min(self.nearest(sound or cheap), key=lambda trial: trial.cost)

    def nearest(self, trials: Sequence[Trial]) -> list[Trial]:
        """The repairs that close the class; where none does, those that leave least, give or take `closed`."""
        least = min(trial.standing.left for trial in trials)
        closing = [trial for trial in trials if self.is_closed(trial.standing)]
        return closing or [trial for trial in trials if trial.standing.left <= least + self.closed]

    def _too_dear(self, trial: Trial) -> str:
        """Why a repair costs more than is allowed; empty if it does not."""
        if trial.sure > self.most:
            return f"it changes {trial.sure:.0%} of the sure answers"
        if trial.damage > self.damage:
            return f"it is predicted to lose {trial.damage:.1f} points of accuracy"
        return ""

    def _is_enough(self, trial: Trial) -> bool:
        """Whether a repair closes the class at so small a cost that no other is needed."""
        costs = zip((trial.changed, trial.sure, trial.damage), ENOUGH, strict=True)
        cheap = not self._too_dear(trial) and all(cost <= enough for cost, enough in costs)
        return cheap and self.is_closed(trial.standing) and trial.kept >= max(KEPT, self.kept)

    def _try(
        self,
        scene: Scene,
        method: InRounds,
        search: WaysIn,
        seen: meter.Shown,
        trials: list[Trial],
        story: list[str],
        behind: Trial | None,
    ) -> Trial | None:
        """One repair on a copy of the network, or of what another left; what it came to is added to both lists."""
        name, told = (f"{behind.name} and {method.name}", behind.told) if behind else (method.name, ())
        shown = dataclasses.replace(scene.shown, model=copy_model((behind or scene).shown.model))
        before = len(story) - 1  # a sentence each, whatever came of it
        here = part(scene.progress, before / TRIALS, (before + 1) / TRIALS)
        copied = dataclasses.replace(scene, shown=shown, progress=here)
        method = dataclasses.replace(method, closed=self.closed, regained=self.regained)
        start = behind.standing if behind else search.first
        if not start.ways:
            start = dataclasses.replace(start, ways=search.first.ways)
        try:
            steps = list(method.each_round(copied, search, start))
            told, standing = (*told, *(said for said, _ in steps)), steps[-1][1]
            trial = _judged(scene.pool, seen, shown, name, search, standing, told)
        except MethodError as error:
            story.append(f"{name} was tried, and cannot work here: {error}")
            return None
        story.append(f"Tried: {trial}.")
        trials.append(trial)
        return trial


def _until(seconds: float, progress: Progress) -> Progress:
    """The same progress, which ends the work when the time is over."""
    end = time.monotonic() + seconds

    def told(done: int, total: int, note: str) -> None:
        if time.monotonic() > end:
            raise OutOfTime
        progress(done, total, note)

    return told


def _judged(
    pool: Pool,
    seen: meter.Shown,
    shown: OnPixels,
    name: str,
    search: WaysIn,
    standing: Standing,
    told: tuple[str, ...],
) -> Trial:
    label, before, after = search.label, pool.answers, shown.logits(pool.images).argmax(1)
    others = before != label
    sure = others & (pool.logits.softmax(1).amax(1) >= SURE)
    if not bool(sure.any()):
        sure = others
    return Trial(
        name=name,
        shown=shown,
        standing=standing,
        changed=_share((after != before)[others]),
        sure=_share((after != before)[sure]),
        kept=_share(shown.logits(search.held_out).argmax(1) == label),
        damage=meter.predict(seen, dataclasses.replace(shown, exact=True)).loss,
        told=told,
    )


def _share(changed: Tensor) -> float:
    return float(changed.double().mean()) if len(changed) else 0.0


def best() -> Best:
    """`Best` with its defaults: `best()(model, generator=...)`."""
    return Best()


DEFENCES.add(Best.name, Best)
