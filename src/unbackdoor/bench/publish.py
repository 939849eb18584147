"""Records of a store as claims: values that pages are made of, without torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from unbackdoor.attacks import parse_attack
from unbackdoor.bench.cell import Cell, Correlation, Probe, Repair, Training, canonical, method_origins
from unbackdoor.bench.grid import Grid
from unbackdoor.bench.store import Record, Store
from unbackdoor.data import dataset_spec
from unbackdoor.report.benchmark import Claim, ClaimedGrid, Count


def publish(grid: Grid, store: Store, known: Mapping[str, Claim] | None = None) -> ClaimedGrid:
    """A claim for every cell that is done or has failed.

    Args:
        grid: whose cells.
        store: what is done.
        known: key -> claim of cells that were done elsewhere; the store's own come first.
    """
    claims, done, left = [], 0, 0
    for cell, key, record, failure in store.outcomes(grid.cells):
        elsewhere = (known or {}).get(key or "")
        done += record is not None or elsewhere is not None
        if record is None and elsewhere is not None:
            claims.append(elsewhere)
        elif key is None or (record is None and failure is None):
            left += 1
        elif not isinstance(cell, Probe):
            claims.append(claim_of(cell, key, record, None if failure is None else str(failure["reason"])))
    return ClaimedGrid(
        name=grid.name,
        title=grid.title,
        paper=grid.paper,
        cells=len(grid.cells),
        done=done,
        left=left,
        claims=tuple(claims),
    )


def claim_of(cell: Cell, key: str, record: Record | None, failed: str | None = None) -> Claim:
    """What one record says, or why there is none."""
    training = cell if isinstance(cell, Training) else cell.needs
    assert training is not None
    record = record or {}
    result: dict[str, Any] = record.get("result", {})
    repair = cell if isinstance(cell, Repair) else None
    layers = result.get("layers")
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
        method="none" if repair is None else repair.method,
        clean=None if repair is None else repair.clean,
        clean_seed=None if repair is None else repair.clean_seed,
        names=_names(training.data, training.arch, training.attack),
        **_counts(result.get("rates")),
        before=_counts(result.get("before")),
        der=result.get("der"),
        pruned=result.get("pruned"),
        scaled=result.get("scaled"),
        changed=result.get("changed"),
        seconds=record.get("seconds") if repair is None else result.get("method_seconds"),
        settings=json.loads(canonical(cell.config if repair is None else cell.config["method"])),
        origins={} if repair is None else method_origins(repair.method),
        hardware=record.get("hardware", {}),
        versions=record.get("versions", {}),
        commit=record.get("commit"),
        correlation=result if isinstance(cell, Correlation) and result else None,
        layers=layers,
        note="taken over from a run of `unbackdoor train`" if record.get("adopted") else "",
    )


def _counts(rates: dict[str, Any] | None) -> dict[str, Count]:
    return {
        name: Count(hits=rate["hits"], total=rate["total"])
        for name, rate in (rates or {}).items()
        if rate is not None and rate["total"]
    }


@functools.cache
def _names(data: str, arch: str, attack: str | None) -> dict[str, str]:
    """Titles for readers; settings of an attack or a network stay beside its name."""
    name, _, options = arch.partition(":")
    network = {"resnet18": "ResNet-18", "vgg19_bn": "VGG19-BN", "preactresnet18": "PreActResNet-18"}.get(name, name)
    found = {"data": dataset_spec(data).title, "arch": network + (f" ({options})" if options else "")}
    if attack is not None:
        settings = attack.partition(":")[2]
        found["attack"] = parse_attack(attack).title + (f" ({settings})" if settings else "")
    return found
