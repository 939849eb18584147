"""Networks that `unbackdoor train` made before are taken for a grid's trainings, where every setting is the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unbackdoor.attacks import read_attack
from unbackdoor.errors import DataError, UnbackdoorError
from unbackdoor.experiments.cell import VERSIONS, Config, Training, attack_config, recipe_config
from unbackdoor.experiments.grid import Grid
from unbackdoor.experiments.perform import ATTACK, LOG, MODEL, SCHEMA_VERSION, TRIGGER
from unbackdoor.experiments.store import Store
from unbackdoor.settings import build
from unbackdoor.train import Recipe

#: What a training's result says beside its rates.
EXTRAS = ("note", "poisoned_images", "attacked_per_batch", "parameters")


def adopt(grid: Grid, store: Store, folders: Iterable[str | Path], digests: Mapping[str, str]) -> list[Training]:
    """Put finished runs into a store; returns the cells that they are.

    Args:
        grid: whose trainings are looked for.
        store: what is there already stays.
        folders: of `unbackdoor train`; those that are no cell of the grid are passed over.
        digests: of the data sets (`check_data`).

    Raises:
        DataError: a folder holds no finished run.
    """
    wanted = {cell.key(digests): cell for cell in grid.cells if isinstance(cell, Training)}
    adopted = []
    for folder in map(Path, folders):
        record, settings = _read(folder)
        for key, cell in wanted.items():
            if settings != _settings(cell) or store.read(cell, key) is not None:
                continue
            files = {
                name: (folder / name).read_bytes() for name in (MODEL, ATTACK, TRIGGER, LOG) if (folder / name).exists()
            }
            full = {
                "schema_version": SCHEMA_VERSION,
                "kind": cell.kind,
                "config": cell.config,
                "epoch": VERSIONS[cell.kind],
                "data_digest": digests[cell.data],
                "result": {"rates": record["result"], **{name: record.get(name) for name in EXTRAS}},
                "seconds": record["seconds"],
                "commit": None,
                "adopted": True,
                "versions": record["versions"],
                "hardware": record["hardware"],
            }
            store.put(cell, key, full, files)
            adopted.append(cell)
    return adopted


def adopt_networks(grid: Grid, store: Store, digests: Mapping[str, str]) -> None:
    """Take over the networks that a grid names; where it names any, it trains none.

    Raises:
        DataError: a folder holds no finished run, or one of the grid's trainings is in none of them.
    """
    adopt(grid, store, grid.networks, digests)
    for cell in grid.cells if grid.networks else ():
        if isinstance(cell, Training) and store.read(cell, cell.key(digests)) is None:
            places = {folder: _differences(_read(folder)[1], _settings(cell)) for folder in grid.networks}
            nearest = min(places, key=lambda folder: len(places[folder]))
            raise DataError(
                f"grid {grid.name!r}: expected {cell.title!r} among its networks, as it trains none; the nearest is "
                f"{nearest}, which has {'; '.join(places[nearest])}"
            )


def _read(folder: Path) -> tuple[dict[str, Any], Config]:
    """A run's record, and everything that its result depends on."""
    try:
        record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        _ = record["result"], record["versions"], record["hardware"], record["seconds"]
        return record, _settings_of(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UnbackdoorError) as error:
        raise DataError(f"{folder}: expected a folder of unbackdoor train, with its record.json: {error}") from error


def _settings_of(record: Mapping[str, Any]) -> Config:
    """As a cell says them: what an older record does not know has its default."""
    data, attack = record["data"], record["attack"]
    recipe = {name: tuple(value) if isinstance(value, list) else value for name, value in record["recipe"].items()}
    return {
        "data": data["name"] if isinstance(data, dict) else data,
        "arch": record["arch"],
        "attack": None if attack is None else attack_config(read_attack(attack)),
        "attack_version": record.get("attack_version") or 1,
        "rate": record.get("rate"),
        "recipe": recipe_config(build(Recipe, "recipe", recipe)),
        "seed": record["seed"],
        "dtype": record["dtype"],
    }


def _settings(cell: Training) -> Config:
    return {"attack_version": 1, **cell.config, **cell.versions}


def _differences(found: Config, wanted: Config) -> list[str]:
    return [
        f"{name} {found[name]!r} where {wanted[name]!r} is asked for" for name in wanted if found[name] != wanted[name]
    ]
