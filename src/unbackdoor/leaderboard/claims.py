"""Claims: what one record of a grid says, as one reviewable JSON object, readable without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from msgspec import Struct

from unbackdoor.records import pretty

SCHEMA_VERSION = 1
#: Of methods' and attacks' names in a claim.
NONE = "none"
KINDS = ("training", "repair", "correlation")
#: What every claim's file says.
NEEDED = ("kind", "key", "data", "arch", "attack", "rate", "recipe", "epochs", "seed")


class Count(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`hits` of `total` images."""

    hits: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.total or not self.total:
            raise ValueError(f"expected hits of a total above 0, got {self.hits} of {self.total}")

    @property
    def percent(self) -> float:
        """100 hits / total."""
        return 100 * self.hits / self.total


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One cell of a grid.

    Attributes:
        kind: training, repair or correlation.
        key: the cell's digest.
        failed: why it failed; None where it did not.
        data, arch, attack, rate, target, recipe, epochs, seed, dtype: the network, as a grid says it; `attack` "none"
            is a clean network, whose rate is None.
        method: as a grid says it; "none" for a training.
        paper: that the method is from.
        clean, clean_seed: share of clean images and seed of their draw; None for methods that want none.
        poisoned: share of these with the trigger, for methods that want training images.
        names: titles for readers, of "data", "arch" and "attack".
        acc, asr, ra: what was measured on the whole test set; None where there is no trigger.
        recall: clean images of the target class that are given it; None where there is no such class, or where the
            result is older than this rate.
        before: the same of the network that was repaired.
        der: defence effectiveness rating in [0, 1]; None for trainings and clean networks.
        pruned, scaled, changed: what the method did.
        seconds: of the method's call alone; of a training, all of it.
        settings: the whole configuration, defaults written out.
        origins: setting of the method -> where its value comes from.
        hardware, versions, commit: of the run.
        correlation: of Figure 3, by "pearson" and "spearman".
        layers: scores and cuts of each layer, where the grid asked for them.
        stages: training curves of a method that trains.
        note: anything else.
    """

    kind: str
    key: str
    failed: str | None = None
    data: str
    arch: str
    attack: str
    rate: float | None
    target: int = 0
    recipe: str
    epochs: int
    seed: int
    dtype: str = "bfloat16"
    method: str = NONE
    paper: str = ""
    clean: float | None = None
    clean_seed: int | None = None
    poisoned: float | None = None
    names: dict[str, str] = field(default_factory=dict)
    acc: Count | None = None
    asr: Count | None = None
    ra: Count | None = None
    recall: Count | None = None
    before: dict[str, Count] = field(default_factory=dict)
    der: float | None = None
    pruned: int | None = None
    scaled: int | None = None
    changed: bool | None = None
    seconds: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    correlation: dict[str, Any] | None = None
    layers: list[Any] | None = None
    stages: list[Any] | None = None
    note: str = ""

    def to_json(self) -> str:
        """The file's content; what says nothing is left out."""
        said = {name: value for name, value in vars(self).items() if value or value == 0 or name in NEEDED}
        return pretty({"schema_version": SCHEMA_VERSION, **said, "rate": self.rate})

    @property
    def title(self) -> str:
        """Of its cell, on one line."""
        attack = "clean" if self.rate is None else f"{self.attack} {self.rate:g}"
        given = "" if self.clean is None else f" with {self.clean:g} clean, seed {self.clean_seed}"
        done = {"repair": f": {self.method}{given}", "correlation": ": correlation"}.get(self.kind, "")
        return f"{self.data} {self.arch} {self.recipe} {self.epochs} {attack} seed {self.seed}{done}"


@dataclass(frozen=True, kw_only=True)
class ClaimedGrid:
    """A grid's claims.

    Attributes:
        name, title, paper: as the grid says.
        cells: how many it has.
        keys: theirs, as far as they are known; without any, every claim is taken for one of the grid.
        data: name of a data set -> digest of its content, with which the keys were made.
        claims: of cells that are done or have failed, and others that are in the folder.
    """

    name: str
    title: str
    paper: str = ""
    cells: int
    keys: tuple[str, ...] = ()
    data: dict[str, str] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()

    @cached_property
    def own(self) -> tuple[Claim, ...]:
        """The claims of its cells: what tables and figures are made of."""
        keys = set(self.keys)
        return tuple(claim for claim in self.claims if not keys or claim.key in keys)

    @property
    def failed(self) -> tuple[Claim, ...]:
        """Its cells that failed."""
        return tuple(claim for claim in self.own if claim.failed is not None)

    @property
    def done(self) -> int:
        """How many of its cells are done."""
        return len(done_in([self]))

    @property
    def left(self) -> int:
        """How many are neither done nor failed."""
        return max(0, self.cells - len({claim.key for claim in self.own}))

    @property
    def strays(self) -> int:
        """How many claims are of no cell of it: the grid or the code has changed since."""
        return len(self.claims) - len(self.own)


def done_in(grids: Iterable[ClaimedGrid]) -> set[str]:
    """Keys of every cell that is done."""
    return {claim.key for grid in grids for claim in grid.own if claim.failed is None}


def file_name(text: str) -> str:
    """A text as a file's name that a reader recognises."""
    return re.sub(r"[^\w.=@-]", "_", text.replace(": ", "-")).strip("._")[:180] or "unnamed"
