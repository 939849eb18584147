"""What the witnesses that need no data say of a network together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unbackdoor.findings.values import as_json, plain, rendered

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ClassWitness:
    """One class.

    Attributes:
        label: the class.
        scores: by witness, how far it stands out among the classes; None where the witness says nothing.
        standard: the same, in deviations of the largest scores of honest networks (`z`).
        values: what the scores come from, by name: `head`, the length of the change of the classifier's input that
            reaches it; `stimulation`, the sum of squared shares of answers that channels move to it; `mask` and
            `additive`, the size of the smallest trigger of that form.
    """

    label: int
    scores: Mapping[str, float | None]
    standard: Mapping[str, float | None]
    values: Mapping[str, float | None]

    @property
    def z(self) -> float | None:
        """The largest z, by which the class is judged."""
        return max((z for z in self.standard.values() if z is not None), default=None)

    @property
    def witness(self) -> str | None:
        """The witness that says so."""
        known = {name: z for name, z in self.standard.items() if z is not None}
        return max(known, key=known.__getitem__, default=None)


@dataclass(frozen=True, kw_only=True)
class PushingChannel:
    """A channel that moves answers to a class if it fires.

    Attributes:
        layer: its layer, and `channel` its number there.
        label: the class.
        moved: share of the answers that move to it, of those that were not there before.
    """

    layer: str
    channel: int
    label: int
    moved: float


@dataclass(frozen=True, kw_only=True)
class StampedSurrogate:
    """A generated image without and with a trigger, as PNG in data URIs, and what the network answers to each."""

    before: str
    after: str
    answer_before: int
    answer_after: int


@dataclass(frozen=True, kw_only=True)
class FoundTrigger:
    """A trigger that was reconstructed.

    Attributes:
        label: the class that it sends images to.
        form: "mask" or "additive".
        size: the sum of the mask, in pixels, or the L2 norm of what is added, for pixels from 0 to 1.
        moved: share of the generated images of other classes that it sends there.
        change: what it changes in the mean, as a PNG: grey where nothing, the largest change at full strength.
        pictures: some of them.
    """

    label: int
    form: str
    size: float
    moved: float
    change: str
    pictures: tuple[StampedSurrogate, ...]


@dataclass(frozen=True, kw_only=True)
class Witness:
    """What the witnesses say of a network.

    Attributes:
        classes: one a class.
        suspects: the classes that stand out more than honest networks' do, the one that stands out most first.
        statistic: the largest z of all classes and witnesses.
        p: share of honest networks whose statistic is as large (the network itself is counted, too); None: cannot tell.
        alpha: the p at or below which a class is suspected, and `limit` the z above which that is so.
        least: the smallest p that can be reached, with `honest` networks to compare with.
        missing: witness -> why it could not look.
        channels: those that move most answers to one class.
        triggers: of the suspects, or of the class that stands out most.
        seed: of everything that was drawn.
        notes: what a reader should know.
        source: the file read, and `arch` the architecture it was read with.
    """

    classes: tuple[ClassWitness, ...]
    suspects: tuple[int, ...]
    statistic: float | None
    p: float | None
    alpha: float
    limit: float | None
    least: float
    honest: int
    missing: Mapping[str, str]
    channels: tuple[PushingChannel, ...]
    triggers: tuple[FoundTrigger, ...]
    seed: int
    notes: tuple[str, ...] = ()
    source: str | None = None
    arch: str | None = None
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def suspect(self) -> int | None:
        """The class that is suspected most."""
        return self.suspects[0] if self.suspects else None

    @property
    def ranked(self) -> tuple[ClassWitness, ...]:
        """The classes, those that stand out most first."""
        low = float("-inf")
        return tuple(sorted(self.classes, key=lambda one: (-(low if one.z is None else one.z), one.label)))

    def to_json(self) -> str:
        """Everything, as JSON; equal findings give equal bytes."""
        return as_json(plain(self))

    def to_text(self) -> str:
        """For a terminal or a log; plain characters only."""
        return rendered(self, "text")

    def to_html(self) -> str:
        """One self-contained page."""
        return rendered(self, "html")
