"""Words that every kind of output shares: headlines, groups of remarks, numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from unbackdoor.findings import NO_PROOF, DataReport, LayerReport, Remark, Report, Stage

NOTHING_FOUND = f"No outlier channel was found. {NO_PROOF}"
ONLY_CLASSIFIER = "Only the classifier can be repaired: no scored layer is known to hold hidden channels."
A_GUESS = "a guess, not a verdict"

RULES = {
    "fx": "dataflow traced with torch.fx",
    "export": "dataflow traced with torch.export",
    "onnx": "dataflow in the ONNX graph",
    "arch": "dataflow of the architecture that was given",
    "names": "names and order of the tensors",
    "itself": "the norm's channels are scored directly",
}


@dataclass(frozen=True)
class Group:
    """Remarks that share a kind and a reason."""

    kind: str
    reason: str
    paths: tuple[str, ...]


def headline(report: Report) -> str:
    """What was found, in one to three sentences."""
    return f"{_found(report)} {ONLY_CLASSIFIER}" if report.only_classifier else _found(report)


def _found(report: Report) -> str:
    if not report.layers:
        if report.story:
            return report.story[-1]
        if report.stages:
            return "All weights were trained. No channel was scored."
        return "No layer was scored, so this report says nothing about the model."
    found = report.pruned + report.immutable
    if not found:
        return NOTHING_FOUND
    hit = sum(1 for layer in report.layers if layer.pruned or layer.immutable)
    left = f"; {report.immutable:,} cannot be pruned" if report.immutable else ""
    return f"{count(found, 'outlier channel')} in {hit:,} of {count(len(report.layers), 'layer')}{left}."


def not_covered(report: Report) -> str:
    """The warning of an incomplete report."""
    parts = len(report.not_covered)
    has, they, them = ("has", "It", "it") if parts == 1 else ("have", "They", "them")
    return (
        f"{count(parts, 'part')} of the model could not be read, or {has} no known role. {they} may hold a backdoor, "
        f"and no repair changes {them}."
    )


def consequence(report: Report) -> tuple[str, str]:
    """What happens to an outlier and to a near outlier: it was done in a repair, and not yet in a scan or a plan."""
    if report.changed:
        return "pruned", "shrunk"
    return "pruned by a repair", "shrunk by a repair"


def stage(stage: Stage) -> str:
    """How training went, in one line."""
    if not stage.losses:
        return f"{stage.name}: nothing was recorded"
    loss = f"loss from {number(stage.losses[0])} to {number(stage.losses[-1])}"
    number_of = len(stage.losses)
    points = f"{number_of:,} x {stage.unit}" if " " in stage.unit else count(number_of, stage.unit)
    if not stage.accuracies:  # of a method that is given no labels
        return f"{stage.name} ({points}): {loss}"
    rates = [f"{rate:.1%}" if rate is not None else "-" for rate in (stage.accuracies[0], stage.accuracies[-1])]
    return f"{stage.name} ({points}): {loss}, accuracy on the given images from {rates[0]} to {rates[1]}"


def data(data: DataReport) -> str:
    """Which images a method was given."""
    origin = f" of {data.name}" if data.name else ""
    drawn = {"share": data.share, "seed": data.seed}
    how = ", ".join(f"{name} {value:g}" for name, value in drawn.items() if value is not None)
    return f"{count(data.images, 'image')}{origin}{f' ({how})' if how else ''}, SHA-256 {data.digest}"


def group(remarks: Iterable[Remark]) -> tuple[Group, ...]:
    """Remarks by kind and reason, in the order in which these first appear."""
    paths: dict[tuple[str, str], list[str]] = {}
    for remark in remarks:
        paths.setdefault((remark.kind, remark.reason), []).append(remark.path)
    return tuple(Group(kind, reason, tuple(found)) for (kind, reason), found in paths.items())


def notes(report: Report) -> tuple[Group, ...]:
    """The layers' notes, each once, with its layers."""
    return group(Remark(layer.path, "", note) for layer in report.layers for note in layer.notes)


def top_z(layer: LayerReport) -> float | None:
    """The largest distance above the mean, in standard deviations."""
    return layer.distance(max((score for score in layer.scores if score is not None), default=None))


def strongest(layer: LayerReport, channels: Iterable[int]) -> list[int]:
    """Channels by their distance from the mean, the farthest first."""
    return sorted(channels, key=lambda channel: (-abs(layer.z(channel) or 0.0), channel))


def settings(values: Mapping[str, Any]) -> dict[str, str]:
    """Each setting that has a value, as text."""
    return {key: _setting(value) for key, value in values.items() if value is not None}


def count(number: int, noun: str) -> str:
    """For example "1 layer" and "4,800 channels"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def number(value: float | None, *, digits: int = 4) -> str:
    """A number in a few significant digits; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


def aligned(value: float | None) -> str:
    """`number` with its trailing zeros, for a column."""
    return "-" if value is None else f"{value:#.4g}".rstrip(".")


def signed(value: float | None) -> str:
    """A distance in standard deviations, with its sign."""
    return "-" if value is None else f"{value:+.2f}"


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
