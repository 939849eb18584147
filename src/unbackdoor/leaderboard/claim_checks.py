"""A claim's and a grid's file, read and checked to the bottom: nothing that was read fails later."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from unbackdoor.errors import DataError
from unbackdoor.leaderboard.claims import KINDS, NEEDED, NONE, SCHEMA_VERSION, Claim, Count

#: Of a grid's file.
GRID_FIELDS = {"name": str, "title": str, "paper": str, "cells": int, "data": dict[str, str], "keys": list[str]}


def read_claim(path: Path) -> Claim:
    """One file.

    Raises:
        DataError: it is no claim.
    """
    record = _object(path)
    version = record.pop("schema_version", None)
    if type(version) is not int or version != SCHEMA_VERSION:
        raise DataError(f"{path}: expected a claim of schema_version {SCHEMA_VERSION}, got {version!r}")
    unknown = sorted(set(record) - set(_FIELDS))
    if unknown:
        raise DataError(f"{path}: unknown key {unknown[0]!r}; a claim has {', '.join(_FIELDS)}")
    missing = [name for name in NEEDED if name not in record]
    if missing:
        raise DataError(f"{path}: expected a claim's {missing[0]!r}, which is missing")
    found = {name: _value(path, record, name, kind) for name, kind in _FIELDS.items() if name in record}
    claim = Claim(**found)
    _check(path, claim)
    return claim


def read_head(head: Path) -> dict[str, Any]:
    record = _object(head)
    version = record.pop("schema_version", SCHEMA_VERSION)
    if type(version) is not int or version != SCHEMA_VERSION:
        raise DataError(f"{head}: expected schema_version {SCHEMA_VERSION}, got {version!r}")
    found = {name: _value(head, record, name, kind) for name, kind in GRID_FIELDS.items() if name in record}
    if set(record) - set(GRID_FIELDS) or not {"name", "title", "cells"} <= set(record) or found["cells"] < 0:
        raise DataError(f"{head}: expected {', '.join(GRID_FIELDS)} of a grid, got {', '.join(record) or 'nothing'}")
    for key in found.get("keys", ()):
        if not isinstance(key, str):
            raise DataError(f"{head}: keys: expected texts, got {key!r}")
    return {"data": {}, **found, "keys": tuple(found.get("keys", ()))}


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
    if claim.seconds is not None and claim.seconds < 0:
        raise DataError(f"{path}: seconds: expected no less than 0, got {claim.seconds}")
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
        return _built(value, kind) if type(value) is dict else value
    wanted = kind.__name__ if isinstance(kind, type) else str(kind).replace("unbackdoor.leaderboard.claims.", "")
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
    origin, arguments = _parts(kind)
    if origin is dict:
        return isinstance(value, dict) and (arguments[1] is Any or all(_fits(v, arguments[1]) for v in value.values()))
    if origin is list:
        return isinstance(value, list)
    if origin is not None:  # a union
        return any(_fits(value, one) for one in arguments)
    return type(value) is kind


def _built(value: dict[str, Any], kind: Any) -> Any:
    """Counts for their objects."""
    origin, arguments = _parts(kind)
    if Count not in arguments:
        return value
    return {name: Count(**one) for name, one in value.items()} if origin is dict else Count(**value)


@functools.cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(kind), get_args(kind)


_FIELDS = get_type_hints(Claim)
