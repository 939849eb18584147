"""How often does a network without a backdoor look like this one? Empirical p-values from clean networks.

Each witness gives every class a score. Clean networks say how large the largest score of a network is by chance, so
that witnesses can be compared, and networks of 10 classes and of 43.

    z(w, c)    (score of class c by witness w - mean) / deviation, of the largest scores by w on clean networks
    T          the largest z of a network, over witnesses and classes
    p(z)       (1 + the number of clean networks whose T is z or more) / (1 + their number)

A clean network's own T is measured against the other clean networks, as a new one's is against all of them. Where a
witness cannot look at a network, the clean networks are judged without it, too. p is family-wise: over all classes and
witnesses of a network.

The clean networks are in witness.json, written by `python studies/witnesses.py fit`.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import msgspec

#: The share of clean networks that may be flagged, where enough of them are known.
ALPHA = 0.05
#: Fewer clean networks give no p-value.
FEWEST = 4
#: A deviation of the largest scores below this is taken for it.
LEAST = 0.25

#: Scores by witness, one a class; None where a witness says nothing of a class.
Scores = Mapping[str, Sequence[float | None]]


class CleanNetwork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the witnesses say of a network that is known to have no backdoor.

    Attributes:
        data, arch: what it is.
        classes: how many.
        running_statistics: whether it has a norm with them.
        largest: the largest score over the classes by each witness; None where it could not look.
    """

    data: str
    arch: str
    classes: int
    running_statistics: bool
    largest: dict[str, float | None]


class CleanNetworks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What witness.json holds."""

    networks: list[CleanNetwork]


@functools.cache
def clean_networks() -> CleanNetworks:
    """Those that ship with the package."""
    return msgspec.json.decode(resources.files(__package__).joinpath("witness.json").read_bytes(), type=CleanNetworks)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the witnesses say together.

    Attributes:
        standard: z by witness, one a class; None where it says nothing.
        statistic: the largest; None where there is none to compare with.
        p: of the statistic; None: cannot tell.
        alpha: at or below it a class is suspected.
        limit: the z above which p is at or below alpha; None where there is no p.
        least: the smallest p that so many clean networks can give.
        honest: how many clean networks.
        suspects: the classes whose own z is above the limit, the largest z first.
        notes: on how far p can be trusted, or why there is none.
    """

    standard: Mapping[str, tuple[float | None, ...]]
    statistic: float | None
    p: float | None
    alpha: float
    limit: float | None
    least: float
    honest: int
    suspects: tuple[int, ...]
    notes: tuple[str, ...]


def largest(scores: Sequence[float | None]) -> float | None:
    """The largest of a witness's scores; None if it has none."""
    return max((score for score in scores if score is not None), default=None)


def judge(scores: Scores, *, running_statistics: bool, known: CleanNetworks | None = None) -> Verdict:
    """Compare a network with the clean ones.

    Args:
        scores: by witness, those that could look.
        running_statistics: whether the network has a norm with them.
        known: clean networks; those of the package by default.
    """
    everyone = (known or clean_networks()).networks
    rows = [row for row in everyone if any(row.largest.get(name) is not None for name in scores)]
    by_chance = sorted(z for index in range(len(rows)) if (z := _by_chance(rows, index, scores)) is not None)[::-1]
    count = len(by_chance)
    least = 1 / (1 + count)
    alpha = max(ALPHA, least)
    standard = _standard(scores, rows)
    statistic = _largest(standard)
    p = limit = None
    suspects: list[tuple[float, int]] = []
    if not scores:
        notes = ["no witness could look at this network"]
    elif statistic is None or count < FEWEST:
        notes = [f"expected {FEWEST} or more honest networks to compare with, have {len(rows)}"]
    else:
        notes = _doubts(scores, rows, running_statistics=running_statistics)
        p = (1 + sum(z >= statistic for z in by_chance)) / (1 + count)
        limit = by_chance[math.floor(alpha * (1 + count) + 1e-9) - 1]
        classes = max(len(one) for one in standard.values())
        tops = [(largest([one[label] for one in standard.values()]), label) for label in range(classes)]
        suspects = sorted((-z, label) for z, label in tops if z is not None and z > limit)
    return Verdict(
        standard=standard,
        statistic=statistic,
        p=p,
        alpha=alpha,
        limit=limit,
        least=least,
        honest=count,
        suspects=tuple(label for _, label in suspects),
        notes=tuple(notes),
    )


def _by_chance(rows: Sequence[CleanNetwork], index: int, scores: Scores) -> float | None:
    """A clean network's statistic, by the same witnesses, against the other clean networks."""
    measured = {name: [rows[index].largest.get(name)] for name in scores}
    return _largest(_standard(measured, [*rows[:index], *rows[index + 1 :]]))


def _doubts(scores: Scores, rows: Sequence[CleanNetwork], *, running_statistics: bool) -> list[str]:
    """Why p may be off."""
    notes = []
    if len(rows) < 1 / ALPHA - 1:
        notes.append(
            f"p rests on {len(rows)} honest networks only: it cannot be smaller than {1 / (1 + len(rows)):.3g}, and "
            f"about one honest network in {1 + len(rows)} is suspected by chance"
        )
    classes, most = max(len(one) for one in scores.values()), max(row.classes for row in rows)
    if classes > most:
        notes.append(f"the network has {classes} classes, and the honest networks have {most} at most: p may be off")
    if not any(row.running_statistics == running_statistics for row in rows):
        which = "running statistics" if running_statistics else "no norm with running statistics"
        notes.append(f"the network has {which}, unlike the honest networks: p may be off")
    return notes


def _standard(scores: Scores, rows: Sequence[CleanNetwork]) -> dict[str, tuple[float | None, ...]]:
    """Scores in deviations of the largest scores on clean networks; a witness that saw fewer than two of them is left
    out."""
    found = {}
    for name, values in scores.items():
        seen = [x for row in rows if (x := row.largest.get(name)) is not None]
        if len(seen) >= 2:
            mean, deviation = statistics.fmean(seen), max(LEAST, statistics.stdev(seen))
            found[name] = tuple(None if value is None else (value - mean) / deviation for value in values)
    return found


def _largest(standard: Scores) -> float | None:
    return largest([value for values in standard.values() for value in values])
