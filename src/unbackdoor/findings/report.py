"""What a scan, a plan or a repair found, layer by layer.

The same model and settings give the same values and the same bytes; no time, no host and no random number is kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unbackdoor.findings.damage import Damage
from unbackdoor.findings.unusual import unusual
from unbackdoor.findings.values import as_json, plain, plain_settings, rendered
from unbackdoor.findings.witness import Witness

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One scored layer.

    Attributes:
        path: its name in the network.
        kind: its type, for example "Conv2d".
        norm: the norm folded into its scores, or several with commas between; or None.
        rule: how that pair was found ("fx", "export", "arch", "names").
        scores: one a channel; None where the score is not a finite number.
        mean, std: of the finite scores.
        lower, band, upper: scores below `lower` or above `upper` are outliers, those between `band` and `upper` near
            outliers; None where that threshold is switched off.
        pruned_high, pruned_low: outlier channels above and below.
        not_finite: channels whose score is NaN or infinite; they are pruned.
        scaled: near outliers, and `factors` what they are multiplied with.
        immutable: outlier channels that are not pruned, because the layer's tensors do not allow it.
        notes: what a reader should know, for example that no score can pass a threshold.
    """

    path: str
    kind: str
    norm: str | None
    rule: str
    scores: tuple[float | None, ...]
    mean: float | None
    std: float | None
    lower: float | None
    band: float | None
    upper: float | None
    pruned_high: tuple[int, ...] = ()
    pruned_low: tuple[int, ...] = ()
    not_finite: tuple[int, ...] = ()
    scaled: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()
    immutable: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def pruned(self) -> tuple[int, ...]:
        """Every pruned channel, in order."""
        return tuple(sorted({*self.pruned_high, *self.pruned_low, *self.not_finite}))

    def z(self, channel: int) -> float | None:
        """The score's distance from the mean in standard deviations."""
        return self.distance(self.scores[channel])

    def distance(self, score: float | None) -> float | None:
        """How far a score or threshold lies from the mean, in standard deviations; None where there is no spread."""
        if score is None or self.mean is None or not self.std:
            return None
        z = (score - self.mean) / self.std
        return z if math.isfinite(z) else None


@dataclass(frozen=True, kw_only=True)
class ClassifierReport:
    """The classifier step.

    Attributes:
        path: the classifier.
        guessed_class: the class whose mean weight is largest: a guess of the attacker's target, no more.
        features: how many input features the classifier has.
        cut: the input features whose weight for that class is set to zero, and `gaps` by how much each of those weights
            lay above the other classes' mean.
        class_means: the mean weight of each class.
    """

    path: str
    guessed_class: int
    features: int
    cut: tuple[int, ...]
    gaps: tuple[float, ...]
    class_means: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a method that trains: a point an epoch (or every so many steps, as `unit` says).

    Attributes:
        name: what is trained, for example "fine-tuning".
        unit: what one point stands for.
        losses: mean losses; None where one was not a finite number.
        accuracies: on the images it was given, as they were shown to the network (augmented where they were); empty
            where it was given none.
    """

    name: str
    unit: str
    losses: tuple[float | None, ...]
    accuracies: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The images that a method was given.

    Attributes:
        images: how many.
        digest: SHA-256 of the images and their labels.
        name: of the data set, where it has one.
        share: of its training part, where one was asked for, and `seed` of that draw.
        seed: of the draw; None where the images came as tensors.
    """

    images: int
    digest: str
    name: str | None = None
    share: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Remark:
    """A layer or norm, and what a reader should know of it."""

    path: str
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was read, scored, pruned, shrunk, left unchanged, and why.

    Attributes:
        action: "plan" (a model in memory), "scan", "repair", or "defend" (a method that was given images).
        method: the method's name and `settings` all its hyper-parameters.
        score: what a score is; empty where it is a channel's Lipschitz constant.
        layers: every scored layer, in the order of the network.
        classifier: the classifier step, or None where it was off or had nothing to act on (a remark says so).
        not_covered: what could not be read or paired, or is scored and never edited, since its part in the network is
            not known; it makes the report incomplete.
        left_alone: what was read, but is not this method's to change.
        unpaired_norms: norms that belong to no single layer.
        stages: how training went, for methods that train.
        data: the images that the method was given, or None.
        doubtful: the class that was closed though no class is suspected, if any.
        story: what a method that chooses by itself tried, what came of it and what it chose, in sentences.
        witness: what the witnesses say, where they were asked, or `no_witness` why they could not look.
        damage: the loss of accuracy that a repair is predicted to cost; None where that was not asked, or is not known,
            and `damage_unknown` why.
        source: the file read, `digest` its SHA-256 and `arch` the architecture it was read with.
        output: the file written.
    """

    action: str
    method: str
    settings: Mapping[str, Any]
    score: str = ""
    layers: tuple[LayerReport, ...] = ()
    classifier: ClassifierReport | None = None
    not_covered: tuple[Remark, ...] = ()
    left_alone: tuple[Remark, ...] = ()
    unpaired_norms: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    data: DataReport | None = None
    doubtful: int | None = None
    story: tuple[str, ...] = ()
    witness: Witness | None = None
    no_witness: str = ""
    damage: Damage | None = None
    damage_unknown: str = ""
    source: str | None = None
    digest: str | None = None
    arch: str | None = None
    output: str | None = None
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def complete(self) -> bool:
        """Whether this report speaks for the whole network: it has no gap, and is about more than the classifier."""
        return self.gap is None and not self.only_classifier

    @property
    def gap(self) -> str | None:
        """What keeps this report from speaking for the whole network, if anything."""
        if self.not_covered:
            count, first = len(self.not_covered), self.not_covered[0]
            return (
                f"{count} {'part' if count == 1 else 'parts'} of the network could not be read or paired (the first is "
                f"{first.path!r}: {first.reason})"
            )
        if self.cannot_tell:
            return f"the witnesses cannot tell: {self.cannot_tell}"
        return None if self.layers or self.stages or self.story else "no layer of the network was scored"

    @property
    def cannot_tell(self) -> str:
        """Why the witnesses, which were asked, say nothing; empty where they speak, or were not asked."""
        if self.witness is not None and self.witness.p is None:
            return "; ".join((*self.witness.notes, *self.witness.missing.values()))
        return self.no_witness

    @property
    def suspects(self) -> tuple[int, ...]:
        """The classes that the witnesses suspect."""
        return () if self.witness is None else self.witness.suspects

    @property
    def editable(self) -> bool:
        """Whether anything may be edited: a layer whose part is known, a classifier, or what a method chose itself."""
        return self._channels_known or self.classifier is not None or bool(self.stages or self.story)

    @property
    def only_classifier(self) -> bool:
        """Whether the classifier is all that may be edited, so that no channel of the network was repaired."""
        return self.classifier is not None and not self._channels_known and not self.stages and not self.story

    def blocks(self, *, partial: bool) -> bool:
        """Whether nothing may be written.

        Args:
            partial: whether the user asked for a repair of what could be read.
        """
        return self.gap is not None and not (partial and self.editable)

    @property
    def _channels_known(self) -> bool:
        """Whether a layer was scored whose part in the network is known."""
        unknown = {remark.path for remark in self.not_covered}
        return any(layer.path not in unknown for layer in self.layers)

    def too_damaging(self, limit: float | None) -> bool:
        """Whether a larger loss of accuracy is predicted than the limit, if there is one."""
        return limit is not None and self.damage is not None and self.damage.loss > limit

    @property
    def changed(self) -> bool:
        """Whether what is listed was done, rather than planned."""
        return self.action in ("repair", "defend")

    @property
    def unusual(self) -> str | None:
        """A warning if more is pruned than in any network measured so far."""
        return unusual(
            self.method,
            hit_layers=sum(1 for layer in self.layers if layer.pruned),
            layers=len(self.layers),
            pruned_channels=self.pruned,
            channels=self.channels,
            changed=self.changed,
        )

    @property
    def channels(self) -> int:
        """How many channels were scored."""
        return sum(len(layer.scores) for layer in self.layers)

    @property
    def pruned(self) -> int:
        """How many channels are outliers."""
        return sum(len(layer.pruned) for layer in self.layers)

    @property
    def immutable(self) -> int:
        """How many outlier channels cannot be pruned."""
        return sum(len(layer.immutable) for layer in self.layers)

    @property
    def scaled(self) -> int:
        """How many channels are near outliers."""
        return sum(len(layer.scaled) for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and finite numbers, with totals."""
        totals = {
            "layers": len(self.layers),
            "channels": self.channels,
            "pruned": self.pruned,
            "scaled": self.scaled,
            "immutable": self.immutable,
            "classifier_weights_cut": len(self.classifier.cut) if self.classifier else 0,
            "complete": self.complete,
        }
        fields = {item.name: plain(getattr(self, item.name)) for item in dataclasses.fields(self)}
        fields["settings"] = plain_settings(self.settings)
        if self.witness is None and not self.no_witness:  # they were not asked
            del fields["witness"], fields["no_witness"]
        return {"schema_version": fields.pop("schema_version"), "totals": totals, "unusual": self.unusual, **fields}

    def to_json(self) -> str:
        """`to_dict` as JSON; equal reports give equal bytes."""
        return as_json(self.to_dict())

    def to_text(self) -> str:
        """For a terminal or a log; plain characters only."""
        return rendered(self, "text")

    def to_html(self) -> str:
        """One self-contained page."""
        return rendered(self, "html")

    def to_sarif(self) -> str:
        """SARIF 2.1.0, for code scanning in CI."""
        return rendered(self, "sarif")
