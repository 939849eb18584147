"""Claims: what one record of a grid says, as one reviewable JSON file, readable without torch.

    FOLDER/GRID/grid.json      name, title, the paper's table, how many cells are done and left, and the keys of these
    FOLDER/GRID/*.json         one claim each

A claim is made by `unbackdoor bench report`, or written by whoever ran something elsewhere; reading one checks it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from unbackdoor.errors import DataError, OutputError

SCHEMA_VERSION = 1
GRID = "grid.json"
#: Of methods' and attacks' names in a claim.
NONE = "none"
KINDS = ("training", "repair", "correlation")


@dataclass(frozen=True, kw_only=True)
class Count:
    """`hits` of `total` images."""

    hits: int
    total: int

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
        data, arch, attack, rate, target, recipe, epochs, seed: the network, as a grid says it; `attack` "none" is a
            clean network, whose rate is None.
        method: as a grid says it; "none" for a training.
        clean, clean_seed: share of clean images and seed of their draw; None for methods that want none.
        names: titles for readers, of "data", "arch" and "attack".
        acc, asr, ra: what was measured on the whole test set; None where there is no trigger.
        before: the same of the network that was repaired.
        der: defence effectiveness rating in [0, 1]; None for trainings and clean networks.
        pruned, scaled, changed: what the method did.
        seconds: of the method's call alone; of a training, all of it.
        settings: the whole configuration, defaults written out.
        origins: setting of the method -> where its value comes from.
        hardware, versions, commit: of the run.
        correlation: of Figure 3, by "pearson" and "spearman".
        layers: scores and cuts of each layer, where the grid asked for them.
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
    method: str = NONE
    clean: float | None = None
    clean_seed: int | None = None
    names: dict[str, str] = field(default_factory=dict)
    acc: Count | None = None
    asr: Count | None = None
    ra: Count | None = None
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
    note: str = ""

    def to_json(self) -> str:
        """The file's content, a value a line; what says nothing is left out."""
        said = {name: value for name, value in vars(self).items() if value or value == 0}
        return _encode({"schema_version": SCHEMA_VERSION, **said, "rate": self.rate}) + "\n"

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
        cells, done, left: how many there are.
        missing: keys of those that are left.
        claims: of those that are done, and of those that failed.
    """

    name: str
    title: str
    paper: str = ""
    cells: int
    done: int
    left: int = 0
    missing: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()

    @property
    def failed(self) -> tuple[Claim, ...]:
        """Those that failed."""
        return tuple(claim for claim in self.claims if claim.failed is not None)


def read_grids(folder: str | Path, *, without: Container[str] = ()) -> list[ClaimedGrid]:
    """Every grid in a folder of claims, by name.

    Args:
        folder: of all of them, or of one.
        without: names of grids' folders that are passed over.

    Raises:
        DataError: there is none, or a file is no claim; it names the file and what is wrong with it.
    """
    root = Path(folder)
    heads = sorted(root.glob(f"*/{GRID}")) or sorted(root.glob(GRID))
    if not heads:
        raise DataError(f"{root}: expected claims, as `unbackdoor bench report` writes them: no */{GRID} in it")
    return [_read_grid(head) for head in heads if head.parent.name not in without]


def done_in(grids: Iterable[ClaimedGrid]) -> set[str]:
    """Keys of every cell that is done."""
    return {claim.key for grid in grids for claim in grid.claims if claim.failed is None}


def _read_grid(head: Path) -> ClaimedGrid:
    record = _object(head)
    found = {name: _value(head, record, name, kind) for name, kind in _GRID_FIELDS.items() if name in record}
    claims = [read_claim(path) for path in sorted(head.parent.glob("*.json")) if path.name != GRID]
    try:
        return ClaimedGrid(**{**found, "missing": tuple(found.get("missing", ()))}, claims=tuple(claims))
    except TypeError as error:
        raise DataError(f"{head}: expected {', '.join(_GRID_FIELDS)}, got {', '.join(record) or 'nothing'}") from error


def read_claim(path: Path) -> Claim:
    """One file.

    Raises:
        DataError: it is no claim.
    """
    record = _object(path)
    version = record.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: expected a claim of schema_version {SCHEMA_VERSION}, got {version!r}")
    unknown = sorted(set(record) - set(_FIELDS))
    if unknown:
        raise DataError(f"{path}: unknown key {unknown[0]!r}; a claim has {', '.join(_FIELDS)}")
    missing = [name for name in _NEEDED if name not in record]
    if missing:
        raise DataError(f"{path}: expected a claim's {missing[0]!r}, which is missing")
    found = {name: _value(path, record, name, kind) for name, kind in _FIELDS.items() if name in record}
    claim = Claim(**found)
    _check(path, claim)
    return claim


def _check(path: Path, claim: Claim) -> None:
    """What a type does not say."""
    if claim.kind not in KINDS:
        raise DataError(f"{path}: kind: expected one of {', '.join(KINDS)}, got {claim.kind!r}")
    if claim.failed is None and claim.kind != "correlation" and claim.acc is None:
        raise DataError(f"{path}: expected 'acc', or 'failed' with a reason")
    if (claim.attack == NONE) != (claim.rate is None):
        raise DataError(f"{path}: expected a rate with an attack and null without, got {claim.attack}, {claim.rate}")
    for name in ("rate", "clean", "der"):
        value = getattr(claim, name)
        if value is not None and not 0 <= value <= 1:
            raise DataError(f"{path}: {name}: expected a share in [0, 1], got {value}")


def write_grid(folder: str | Path, grid: ClaimedGrid) -> ClaimedGrid:
    """Write a grid's claims; returns the grid with all claims that the folder then holds.

    A claim that is there under the same cell's name is replaced, but not a result by the same cell's failure. Others
    are left, and those of cells that the grid misses count as done.

    Raises:
        DataError: a file that is there is no claim.
        OutputError: the folder cannot be written.
    """
    root = Path(folder) / file_name(grid.name)
    claims: dict[str, Claim] = {}
    for claim in grid.claims:
        name = file_name(claim.title)
        if name in claims and claims[name].key != claim.key:
            name += f"-{claim.key[:8]}"
        claims[name] = claim
    lacking = {*grid.missing, *(claim.key for claim in grid.failed)}
    for path in root.glob("*.json"):
        new = claims.get(path.stem)
        if path.name == GRID or (new is not None and new.failed is None):
            continue
        there = read_claim(path)
        if new is None or (there.key == new.key and there.failed is None):
            claims[path.stem] = there
    found = {claim.key for claim in claims.values() if claim.failed is None} & lacking
    whole = replace(
        grid,
        done=grid.done + len(found),
        left=grid.left - len(found.intersection(grid.missing)),
        missing=tuple(key for key in grid.missing if key not in found),
        claims=tuple(claims[name] for name in sorted(claims, key=lambda name: f"{name}.json")),
    )
    head = {name: getattr(whole, name) for name in _GRID_FIELDS}
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name, claim in claims.items():
            _write(root / f"{name}.json", claim.to_json())
        _write(root / GRID, json.dumps(head, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise OutputError(f"{root}: claims cannot be written: {error.strerror or error}") from error
    return whole


def file_name(text: str) -> str:
    """A text as a file's name that a reader recognises."""
    return re.sub(r"[^\w.=@-]", "_", text.replace(": ", "-")).strip("._")[:180] or "unnamed"


def _write(path: Path, content: str) -> None:
    """Claims can be made again at any time, so a killed run may leave half of one: no wait for the disk, no rename."""
    data = content.encode()
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)


#: With a line break behind each value instead of an indent, for which Python has no fast encoder; a count as an object.
_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",\n ", ": "), default=vars).encode


def _object(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes(), parse_constant=_no_constant)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a claim in JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(record).__name__}")
    return record


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _value(path: Path, record: Mapping[str, Any], name: str, kind: Any) -> Any:
    """One field, of its declared type."""
    value = record[name]
    if _fits(value, kind):
        return _built(value, kind)
    wanted = kind.__name__ if isinstance(kind, type) else str(kind).replace("unbackdoor.report.benchmark.claims.", "")
    raise DataError(f"{path}: {name}: expected {wanted}, got {str(value)[:80]!r}")


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    if kind is Count:
        return (
            isinstance(value, dict)
            and set(value) == {"hits", "total"}
            and all(type(v) is int for v in value.values())
            and 0 <= value["hits"] <= value["total"]
            and value["total"] > 0
        )
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    origin = get_origin(kind)
    if origin is dict:
        inner = get_args(kind)[1]
        return isinstance(value, dict) and all(_fits(v, inner) for v in value.values())
    if origin is list:
        return isinstance(value, list)
    if origin is not None:  # a union
        return any(_fits(value, one) for one in get_args(kind))
    return type(value) is kind


def _built(value: Any, kind: Any) -> Any:
    if isinstance(value, dict) and (kind is Count or Count in get_args(kind)):
        if set(value) == {"hits", "total"}:
            return Count(**value)
        return {name: Count(**one) for name, one in value.items()}
    return value


_FIELDS = get_type_hints(Claim)
_NEEDED = ("kind", "key", "data", "arch", "attack", "rate", "recipe", "epochs", "seed")
_GRID_FIELDS = {"name": str, "title": str, "paper": str, "cells": int, "done": int, "left": int, "missing": list[str]}
