"""Claims: what one record of a grid says, as one reviewable JSON file, readable without torch.

    FOLDER/GRID/grid.json      name, title, the paper's table, the keys of its cells and what the data sets held
    FOLDER/GRID/*.json         one claim each; a name is for readers and ends with the start of the cell's key

A claim is made by `unbackdoor bench report`, or written by whoever ran something elsewhere; reading one checks it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
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
        data, arch, attack, rate, target, recipe, epochs, seed, dtype: the network, as a grid says it; `attack` "none"
            is a clean network, whose rate is None.
        method: as a grid says it; "none" for a training.
        clean, clean_seed: share of clean images and seed of their draw; None for methods that want none.
        poisoned: share of these with the trigger, for methods that want training images.
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
    dtype: str = "bfloat16"
    method: str = NONE
    clean: float | None = None
    clean_seed: int | None = None
    poisoned: float | None = None
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
        said = {name: value for name, value in vars(self).items() if value or value == 0 or name in _NEEDED}
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


def read_grids(folder: str | Path, *, without: Container[str] = ()) -> list[ClaimedGrid]:
    """Every grid in a folder of claims, by name.

    Args:
        folder: of all of them, or of one.
        without: names of grids' folders that are passed over.

    Raises:
        DataError: there is none, or a file is no claim; it names the file and what is wrong with it.
    """
    heads = _heads(Path(folder))
    if not heads:
        raise DataError(f"{folder}: expected claims, as `unbackdoor bench report` writes them: no */{GRID} in it")
    grids = [_read_grid(head) for head in heads if head.parent.name not in without]
    for head, grid in zip((h for h in heads if h.parent.name not in without), grids, strict=True):
        if len(heads) > 1 and head.parent.name != file_name(grid.name):
            raise DataError(f"{head}: expected the grid of its folder, {head.parent.name!r}, got {grid.name!r}")
    return grids


def read_digests(folder: str | Path) -> dict[str, str]:
    """Name of a data set -> digest of its content, of all grids in a folder of claims; nothing where it holds none.

    Raises:
        DataError: a grid.json is none, or two of them say otherwise of one data set.
    """
    found: dict[str, str] = {}
    for head in _heads(Path(folder)):
        for name, digest in _read_head(head)["data"].items():
            if found.setdefault(name, digest) != digest:
                raise DataError(f"{head}: is about another version of {name!r} than the grids beside it")
    return found


def done_in(grids: Iterable[ClaimedGrid]) -> set[str]:
    """Keys of every cell that is done."""
    return {claim.key for grid in grids for claim in grid.own if claim.failed is None}


def _heads(root: Path) -> list[Path]:
    heads = sorted(root.glob(f"*/{GRID}")) or sorted(root.glob(GRID))
    orphan = next((p for p in sorted(root.glob("*/*.json")) if not p.with_name(GRID).exists()), None) if heads else None
    if orphan is not None:
        raise DataError(f"{orphan.parent}: expected a {GRID} beside its claims")
    return heads


def _read_head(head: Path) -> dict[str, Any]:
    record = _object(head)
    version = record.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise DataError(f"{head}: expected schema_version {SCHEMA_VERSION}, got {version!r}")
    found = {name: _value(head, record, name, kind) for name, kind in _GRID_FIELDS.items() if name in record}
    if set(record) - set(_GRID_FIELDS) or not {"name", "title", "cells"} <= set(record) or found["cells"] < 0:
        raise DataError(f"{head}: expected {', '.join(_GRID_FIELDS)} of a grid, got {', '.join(record) or 'nothing'}")
    for key in found.get("keys", ()):
        if not isinstance(key, str):
            raise DataError(f"{head}: keys: expected texts, got {key!r}")
    return {"data": {}, **found, "keys": tuple(found.get("keys", ()))}


def _read_grid(head: Path) -> ClaimedGrid:
    claims: dict[tuple[str, str], tuple[Path, Claim]] = {}
    for path in sorted(head.parent.glob("*.json")):
        if path.name != GRID:
            claim = read_claim(path)
            _put(claims, path, claim)
    return ClaimedGrid(**_read_head(head), claims=tuple(claim for _, claim in claims.values()))


def _put(claims: dict[tuple[str, str], tuple[Path, Claim]], path: Path, claim: Claim) -> None:
    """Claims by cell; a second file on one cell would be counted as a second measurement."""
    place = (claim.key, claim.title)
    if place in claims:
        raise DataError(f"{path}: is on the same cell as {claims[place][0].name}: keep one of them")
    claims[place] = (path, claim)


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
    for name in ("kind", "key", "data", "arch", "attack", "recipe", "method", "dtype"):
        if not getattr(claim, name):
            raise DataError(f"{path}: {name}: expected a text, got an empty one")
    if claim.kind not in KINDS:
        raise DataError(f"{path}: kind: expected one of {', '.join(KINDS)}, got {claim.kind!r}")
    if claim.failed == "":
        raise DataError(f"{path}: failed: expected a reason, got an empty text")
    if claim.failed is None and claim.kind != "correlation" and claim.acc is None:
        raise DataError(f"{path}: expected 'acc', or 'failed' with a reason")
    if (claim.attack == NONE) != (claim.rate is None):
        raise DataError(f"{path}: expected a rate with an attack and null without, got {claim.attack}, {claim.rate}")
    for name in ("rate", "clean", "poisoned", "der"):
        value = getattr(claim, name)
        if value is not None and not 0 <= value <= 1:
            raise DataError(f"{path}: {name}: expected a share in [0, 1], got {value}")
    if not set(claim.before) <= {"acc", "asr", "ra"}:
        raise DataError(f"{path}: before: expected acc, asr and ra, got {', '.join(claim.before)}")
    counted = _effectiveness(claim)
    if claim.der is not None and counted is not None and abs(claim.der - counted) > 1e-6:
        raise DataError(f"{path}: der: its counts say {counted:.6f}, got {claim.der}")
    if claim.correlation is not None and not _is_correlation(claim.correlation):
        raise DataError(f"{path}: correlation: expected images, layers, pearson and spearman of Figure 3")
    for layer in claim.layers or ():
        if not _is_layer(layer):
            raise DataError(f"{path}: layers: expected a layer's path, scores and cuts, got {str(layer)[:80]}")


def _effectiveness(claim: Claim) -> float | None:
    """DER of its counts; None where they do not say."""
    before, after = (claim.before.get("acc"), claim.before.get("asr")), (claim.acc, claim.asr)
    if None in (*before, *after):
        return None
    acc, asr = ((b.percent - a.percent) / 100 for b, a in zip(before, after, strict=True) if a and b)
    return (max(0.0, asr) - max(0.0, acc) + 1) / 2


def _is_correlation(found: dict[str, Any]) -> bool:
    kinds = [found.get(name) for name in ("pearson", "spearman")]
    return (
        _fits(found.get("images"), int)
        and isinstance(found.get("layers"), list)
        and all(isinstance(kind, dict) and _numbers(kind.get("per_layer")) for kind in kinds)
        and all(isinstance(rows := kind.get("per_image"), list) and all(map(_numbers, rows)) for kind in kinds if kind)
    )


def _is_layer(layer: object) -> bool:
    if not isinstance(layer, dict) or not isinstance(layer.get("path"), str) or not _numbers(layer.get("scores")):
        return False
    scores, pruned = layer["scores"], layer.get("pruned_high")
    return (
        isinstance(pruned, list)
        and all(type(c) is int and 0 <= c < len(scores) and scores[c] is not None for c in pruned)
        and all(_fits(layer.get(name), float | None) for name in ("mean", "std", "upper", "band"))
        and (layer.get("std") is None or layer.get("mean") is not None)
    )


def _numbers(values: object) -> bool:
    """Whether it is a list of numbers, of which some may be missing."""
    return isinstance(values, list) and all(_fits(value, float | None) for value in values)


def merged(folder: str | Path, grid: ClaimedGrid) -> ClaimedGrid:
    """A grid with the claims that a folder holds beside its own; nothing is written.

    A claim that is there on the same cell is replaced, but not a result by a failure.

    Raises:
        DataError: a file that is there is no claim.
    """
    root = Path(folder) / file_name(grid.name)
    claims = {_claim_file(claim): claim for claim in grid.claims}
    others: dict[tuple[str, str], tuple[Path, Claim]] = {}
    for path in sorted(root.glob("*.json")):
        new = claims.get(path.name)
        if path.name == GRID or (new is not None and new.failed is None):
            continue
        there = read_claim(path)
        if path.name != _claim_file(there) and _claim_file(there) in claims:
            raise DataError(f"{path}: is on the same cell as {_claim_file(there)}: keep one of them")
        _put(others, path, there)
        if new is None or there.failed is None:
            claims[_claim_file(there)] = there
    return replace(grid, claims=tuple(claims[name] for name in sorted(claims)))


def write_grid(folder: str | Path, grid: ClaimedGrid) -> None:
    """Write a grid's claims; others that are there are left.

    Raises:
        OutputError: the folder cannot be written.
    """
    root = Path(folder) / file_name(grid.name)
    head = {"schema_version": SCHEMA_VERSION, **{name: getattr(grid, name) for name in _GRID_FIELDS}}
    try:
        root.mkdir(parents=True, exist_ok=True)
        for claim in grid.claims:
            _write(root / _claim_file(claim), claim.to_json())
        _write(root / GRID, json.dumps(head, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise OutputError(f"{root}: claims cannot be written: {error.strerror or error}") from error


def _claim_file(claim: Claim) -> str:
    return f"{file_name(claim.title)[:160]}-{file_name(claim.key)[:8]}.json"


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
        content = path.read_bytes()
        record = json.loads(content, parse_constant=_no_constant, parse_float=_finite)
        if b"\\u" in content:
            json.dumps(record, ensure_ascii=False).encode()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a claim in JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(record).__name__}")
    return record


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text} is too large")
    return value


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
        return type(value) in (int, float) and -1e300 < value < 1e300
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
_GRID_FIELDS = {"name": str, "title": str, "paper": str, "cells": int, "data": dict[str, str], "keys": list[str]}
