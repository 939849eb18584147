"""Networks that `unbackdoor train` made before are taken for a grid's trainings, where every setting is the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unbackdoor.errors import DataError
from unbackdoor.experiments.cell import EPOCHS, Training
from unbackdoor.experiments.grid import Grid
from unbackdoor.experiments.perform import ATTACK, LOG, MODEL, SCHEMA_VERSION, TRIGGER
from unbackdoor.experiments.store import Store


def adopt(grid: Grid, store: Store, folders: Iterable[str | Path], digests: dict[str, str]) -> list[Training]:
    """Put finished runs into a store; returns the cells that they are.

    Args:
        grid: whose trainings are looked for.
        store: what is there already stays.
        folders: of `unbackdoor train`; those that are no cell of the grid are passed over.
        digests: of the data sets (`drive.meet_data`).

    Raises:
        DataError: a folder holds no finished run.
    """
    wanted = {cell.key(digests): cell for cell in grid.cells if isinstance(cell, Training)}
    adopted = []
    for folder in map(Path, folders):
        record = _read(folder)
        for key, cell in wanted.items():
            older = (record.get("attack_version") or 1) != cell.versions.get("attack_version", 1)
            if older or store.has(cell, key) or _settings(record) != _settings(cell.config):
                continue
            files = {
                name: (folder / name).read_bytes() for name in (MODEL, ATTACK, TRIGGER, LOG) if (folder / name).exists()
            }
            result = {"rates": record["result"]}
            for name in ("note", "poisoned_images", "attacked_per_batch", "parameters"):
                result[name] = record.get(name)
            full = {
                "schema_version": SCHEMA_VERSION,
                "kind": cell.kind,
                "config": cell.config,
                "epoch": EPOCHS[cell.kind],
                "data_digest": digests[cell.data],
                "result": result,
                "seconds": record["seconds"],
                "commit": None,
                "adopted": True,
                "versions": record["versions"],
                "hardware": record["hardware"],
            }
            store.put(cell, key, full, files)
            adopted.append(cell)
    return adopted


def _read(folder: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        _ = record["result"], record["recipe"], record["versions"], record["hardware"], record["seconds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: expected a folder of unbackdoor train, with its record.json: {error}") from error
    return record


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    """Of a run, everything that its result depends on."""
    names = ("arch", "recipe", "seed", "attack", "rate", "dtype")
    found = {name: record.get(name) for name in names}
    data = record.get("data")
    found["data"] = data["name"] if isinstance(data, dict) else data
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]  # tuples become lists, as in a file
