"""A claim's and a grid's file, read and checked to the bottom: nothing that was read fails later."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct, field

from unbackdoor.errors import DataError
from unbackdoor.findings import RATES
from unbackdoor.leaderboard.claims import KINDS, NONE, SCHEMA_VERSION, Claim
from unbackdoor.records import read_json, typed

T = TypeVar("T")

#: Sums of such numbers are numbers.
Number = Annotated[float, Meta(ge=-1e300, le=1e300)]
FIELDS = tuple(field.name for field in dataclasses.fields(Claim))


class Head(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a grid's file says."""

    name: str
    title: str
    paper: str = ""
    cells: Annotated[int, Meta(ge=0)]
    data: dict[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()


class _Layer(Struct, frozen=True, kw_only=True):
    """What a figure needs of a layer."""

    path: str
    scores: list[Number | None]
    pruned_high: list[int]
    mean: Number | None = None
    std: Number | None = None
    upper: Number | None = None
    band: Number | None = None

    def __post_init__(self) -> None:
        scored = {channel for channel, score in enumerate(self.scores) if score is not None}
        if not scored.issuperset(self.pruned_high):
            raise ValueError("expected pruned channels to be channels with a score")
        if self.std is not None and self.mean is None:
            raise ValueError("expected a mean beside std")


class _Curves(Struct, frozen=True):
    per_image: list[list[Number | None]]
    per_layer: list[Number | None]


class _Correlation(Struct, frozen=True):
    images: int
    layers: list[Any]
    pearson: _Curves
    spearman: _Curves


def read_claim(path: Path) -> Claim:
    """One file.

    Raises:
        DataError: it is no claim.
    """
    record = _object(path, "a claim")
    unknown = sorted(set(record) - set(FIELDS))
    if unknown:
        raise DataError(f"{path}: unknown key {unknown[0]!r}; a claim has {', '.join(FIELDS)}")
    claim = _typed(path, record, Claim)
    _check(path, claim)
    return claim


def read_head(path: Path) -> Head:
    """A grid's.

    Raises:
        DataError: it is none.
    """
    return _typed(path, _object(path, "a grid"), Head)


def _object(path: Path, what: str) -> dict[str, Any]:
    try:
        record = read_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: expected {what} in JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: expected {what}, a JSON object, got {type(record).__name__}")
    version = record.pop("schema_version", None if what == "a claim" else SCHEMA_VERSION)
    if type(version) is not int or version != SCHEMA_VERSION:
        raise DataError(f"{path}: expected {what} of schema_version {SCHEMA_VERSION}, got {version!r}")
    return record


def _typed(path: Path, record: Any, kind: type[T], at: str = "") -> T:
    try:
        return typed(record, kind, at)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _check(path: Path, claim: Claim) -> None:
    """What a type does not say."""
    for name in ("kind", "key", "data", "arch", "attack", "recipe", "method", "dtype"):
        if not getattr(claim, name):
            raise DataError(f"{path}: {name}: expected a text, got an empty one")
    if claim.kind not in KINDS:
        raise DataError(f"{path}: kind: expected one of {', '.join(KINDS)}, got {claim.kind!r}")
    if re.fullmatch("[0-9a-f]{32}", claim.key) is None:
        raise DataError(f"{path}: key: expected 32 hexadecimal digits, got {claim.key[:80]!r}")
    if (claim.kind == "repair") == (claim.method == NONE):
        raise DataError(f"{path}: expected a method of a repair and none of others, got a {claim.kind}, {claim.method}")
    if claim.failed is not None and (not claim.failed or claim.acc is not None):
        raise DataError(f"{path}: failed: expected a reason and no result, got {claim.failed[:80]!r}")
    if claim.seconds is not None and not 0 <= claim.seconds < 1e300:
        raise DataError(f"{path}: seconds: expected no less than 0, got {claim.seconds}")
    if claim.failed is None and claim.kind != "correlation" and claim.acc is None:
        raise DataError(f"{path}: expected 'acc', or 'failed' with a reason")
    if (claim.attack == NONE) != (claim.rate is None):
        raise DataError(f"{path}: expected a rate with an attack and null without, got {claim.attack}, {claim.rate}")
    for name in ("rate", "clean", "poisoned", "der"):
        value = getattr(claim, name)
        if value is not None and not 0 <= value <= 1:
            raise DataError(f"{path}: {name}: expected a share in [0, 1], got {value}")
    if not set(claim.before) <= set(RATES):
        raise DataError(f"{path}: before: expected {', '.join(RATES)}, got {', '.join(claim.before)}")
    counted = _effectiveness(claim)
    if claim.der is not None and counted is not None and abs(claim.der - counted) > 1e-6:
        raise DataError(f"{path}: der: its counts say {counted:.6f}, got {claim.der}")
    if claim.correlation is not None:
        _typed(path, claim.correlation, _Correlation, "correlation")
    if claim.layers is not None:
        _typed(path, claim.layers, list[_Layer], "layers")


def _effectiveness(claim: Claim) -> float | None:
    """DER of its counts; None where they do not say."""
    before, after = (claim.before.get("acc"), claim.before.get("asr")), (claim.acc, claim.asr)
    if None in (*before, *after):
        return None
    acc, asr = ((b.percent - a.percent) / 100 for b, a in zip(before, after, strict=True) if a and b)
    return (max(0.0, asr) - max(0.0, acc) + 1) / 2
