"""Turn a store's records into claims, from which pages are made without torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from unbackdoor.attacks import parse_attack
from unbackdoor.data import dataset_spec
from unbackdoor.defences.table import parse_method
from unbackdoor.experiments.cell import Cell, Correlation, Repair, Training, canonical, method_config, method_origins
from unbackdoor.experiments.grid import Grid
from unbackdoor.experiments.store import Record, Store
from unbackdoor.leaderboard import Claim, ClaimedGrid, Count


def publish(grid: Grid, store: Store, digests: Mapping[str, str] | None = None) -> ClaimedGrid:
    """A claim for every cell that is done or has failed.

    Args:
        grid: the grid.
        store: its results.
        digests: name of a data set -> digest of its content, for data sets not used in this store.
    """
    known = {**(digests or {}), **store.digests()}
    claims, keys = [], []
    for cell, key, record, failure in store.outcomes(grid.cells, known):
        if key is not None:
            keys.append(key)
            if record is not None or failure is not None:
                claims.append(claim_of(cell, key, record, None if failure is None else str(failure["reason"])))
    return ClaimedGrid(
        name=grid.name,
        title=grid.title,
        paper=grid.paper,
        cells=len(set(keys)) + sum(cell.data_name not in known for cell in grid.cells),
        keys=tuple(dict.fromkeys(keys)),
        data={name: known[name] for name in grid.data_sets if name in known},
        claims=tuple(claims),
    )


def claim_of(cell: Cell, key: str, record: Record | None, failed: str | None = None) -> Claim:
    """The claim of one record, or of a failure."""
    training = cell if isinstance(cell, Training) else cell.needs
    assert training is not None
    record = record or {}
    result: dict[str, Any] = record.get("result", {})
    repair = cell if isinstance(cell, Repair) else None
    return Claim(
        kind=cell.kind,
        key=key,
        failed=failed,
        data=training.data,
        arch=training.arch,
        attack=training.attack or "none",
        rate=None if training.attack is None else training.rate,
        target=training.target,
        recipe=training.recipe,
        epochs=training.build_recipe().epochs,
        seed=training.seed,
        dtype=training.dtype,
        method="none" if repair is None else repair.method,
        clean=None if repair is None else repair.clean,
        clean_seed=None if repair is None else repair.clean_seed,
        poisoned=None if repair is None else repair.poisoned,
        names=_names(training.data, training.arch, training.attack),
        **_counts(result.get("rates")),
        before=_counts(result.get("before")),
        der=result.get("der"),
        pruned=result.get("pruned"),
        scaled=result.get("scaled"),
        changed=result.get("changed"),
        seconds=record.get("seconds") if repair is None else result.get("method_seconds"),
        settings=_plain(canonical(cell.config)) if repair is None else _plain(canonical(method_config(repair.method))),
        origins={} if repair is None else _origins(repair.method),
        hardware=record.get("hardware", {}),
        versions=record.get("versions", {}),
        commit=record.get("commit"),
        correlation=result if isinstance(cell, Correlation) and result else None,
        layers=None if repair is None else result.get("layers"),
        stages=None if repair is None else result.get("stages") or None,
        paper="" if repair is None else _paper(repair.method),
        note="taken over from a run of unbackdoor train" if record.get("adopted") else "",
    )


def _counts(rates: dict[str, Any] | None) -> dict[str, Count]:
    return {
        name: Count(hits=rate["hits"], total=rate["total"])
        for name, rate in (rates or {}).items()
        if rate is not None and rate["total"]
    }


@functools.cache
def _plain(text: str) -> dict[str, Any]:
    """Settings as they are read back from a claim's file: lists for tuples."""
    found: dict[str, Any] = json.loads(text)
    return found


@functools.cache
def _paper(method: str) -> str:
    paper = parse_method(method).paper
    return "" if paper is None else paper.cited


_origins = functools.cache(method_origins)


@functools.cache
def _names(data: str, arch: str, attack: str | None) -> dict[str, str]:
    """Titles for readers, with an attack's or network's preset and settings in parentheses."""
    name, _, options = arch.partition(":")
    network = {"resnet18": "ResNet-18", "vgg19_bn": "VGG19-BN", "preactresnet18": "PreActResNet-18"}.get(name, name)
    found = {"data": dataset_spec(data).title, "arch": network + (f" ({options})" if options else "")}
    if attack is not None:
        head, _, settings = attack.partition(":")
        details = ", ".join(filter(None, (head.partition("@")[2], settings)))
        found["attack"] = parse_attack(attack).title + (f" ({details})" if details else "")
    return found
