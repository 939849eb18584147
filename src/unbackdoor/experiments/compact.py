"""All records in one table, a row per cell, in a Parquet file whose bytes only depend on the results."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from unbackdoor.atomic import atomic_write
from unbackdoor.errors import MethodError
from unbackdoor.experiments.cell import Cell, Repair, Training, canonical
from unbackdoor.experiments.grid import Grid
from unbackdoor.experiments.store import Record, Store
from unbackdoor.findings import RATES


def rows(grid: Grid, store: Store) -> list[dict[str, Any]]:
    """One row per cell, sorted by key; they do not depend on when, where or in which order cells were run."""
    found: dict[str, dict[str, Any]] = {}
    for cell, key, record, failure in store.outcomes(grid.cells):
        if key is not None and key not in found and (record is not None or failure is not None):
            found[key] = row(cell, key, record, failure)
    return [found[key] for key in sorted(found)]


def row(cell: Cell, key: str, record: Record | None, failure: Record | None) -> dict[str, Any]:
    """A cell's configuration and rates as one flat row."""
    training = cell if isinstance(cell, Training) else cell.needs
    result = {} if record is None else record["result"]
    rates = result.get("rates") or {}
    flat: dict[str, Any] = {
        "key": key,
        "kind": cell.kind,
        "state": "done" if record is not None else "failed",
        "reason": None if failure is None else failure["reason"],
        "data": None if training is None else training.data,
        "arch": None if training is None else training.arch,
        "attack": None if training is None else (training.attack or "none"),
        "rate": None if training is None or training.attack is None else training.rate,
        "recipe": None if training is None else training.recipe,
        "epochs": None if training is None else training.build_recipe().epochs,
        "seed": None if training is None else training.seed,
        "method": cell.method if isinstance(cell, Repair) else "none",
        "clean": cell.clean if isinstance(cell, Repair) else None,
        "clean_seed": cell.clean_seed if isinstance(cell, Repair) else None,
        "config": canonical(cell.config),
        "der": result.get("der"),
        "pruned": result.get("pruned"),
        "scaled": result.get("scaled"),
        "changed": result.get("changed"),
        "value": result.get("value"),
    }
    for name in RATES:
        rate = rates.get(name)
        flat[name] = None if rate is None else rate["value"]
        flat[f"{name}_hits"] = None if rate is None else rate["hits"]
        flat[f"{name}_total"] = None if rate is None else rate["total"]
    return flat


def compact(grid: Grid, store: Store, path: str | Path) -> int:
    """Write the table; returns its rows.

    Raises:
        MethodError: pyarrow is not installed.
        OutputError: the file cannot be written.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MethodError(
            "a Parquet file needs pyarrow, which is not installed: pip install 'unbackdoor[data]'"
        ) from error
    kinds = {
        **dict.fromkeys(("rate", "clean", *RATES, "der"), pyarrow.float64()),
        **dict.fromkeys(("epochs", "seed", "clean_seed", "pruned", "scaled"), pyarrow.int64()),
        **dict.fromkeys((f"{n}_{w}" for n in RATES for w in ("hits", "total")), pyarrow.int64()),
        "changed": pyarrow.bool_(),
    }
    table = rows(grid, store)
    names = list(row_names())
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in names])
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table, schema=schema), stream)
    with atomic_write(path, overwrite=True) as file:
        file.write(stream.getvalue())
    return len(table)


def row_names() -> tuple[str, ...]:
    """The table's columns."""
    from unbackdoor.experiments.cell import Probe

    return tuple(row(Probe(number=0), "", None, None))
