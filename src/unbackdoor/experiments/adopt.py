"""Import networks that `unbackdoor train` made as a grid's trainings, if all settings are the same."""

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

#: Entries of a training's result besides its rates.
EXTRAS = ("note", "poisoned_images", "attacked_per_batch", "parameters")


def adopt(grid: Grid, store: Store, folders: Iterable[str | Path], digests: Mapping[str, str]) -> list[Training]:
    """Put finished runs into a store; returns their cells.

    Args:
        grid: the grid whose trainings are imported.
        store: the store; existing records are kept.
        folders: folders of `unbackdoor train`; those that match no cell are skipped.
        digests: name of a data set -> digest of its content (see `check_data`).

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
    """Import the networks that a grid names; a grid that names any trains none.

    Raises:
        DataError: a folder holds no finished run, or a training of the grid is in none of the folders.
    """
    adopt(grid, store, grid.networks, digests)
    for cell in grid.cells if grid.networks else ():
        if isinstance(cell, Training) and store.read(cell, cell.key(digests)) is None:
            places = {folder: _differences(_read(folder)[1], _settings(cell)) for folder in grid.networks}
            nearest = min(places, key=lambda folder: len(places[folder]))
            raise DataError(
                f"grid {grid.name!r}: expected {cell.title!r} among its networks, since it lists networks and so "
                f"trains none; the nearest is {nearest}, which has {'; '.join(places[nearest])}"
            )


def _read(folder: Path) -> tuple[dict[str, Any], Config]:
    """A run's record, and the settings that its result depends on."""
    try:
        record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        _ = record["result"], record["versions"], record["hardware"], record["seconds"]
        return record, _settings_of(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UnbackdoorError) as error:
        raise DataError(
            f"{folder}: expected a folder that unbackdoor train wrote, with a record.json: {error}"
        ) from error


def _settings_of(record: Mapping[str, Any]) -> Config:
    """A record's settings in the form of a cell's; settings that an older record lacks have their defaults."""
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
    return [f"{name} {found[name]!r} instead of {wanted[name]!r}" for name in wanted if found[name] != wanted[name]]
