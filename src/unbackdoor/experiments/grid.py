"""A grid as TOML: what is to be run, as products of lists.

    name = "small"
    title = "..."
    paper = "T1"                       # optional: the printed table that stands beside it
    networks = ["zoo/badnet"]          # optional: folders of unbackdoor train that hold its networks; none is trained

    [[runs]]
    data = "cifar10"
    arch = "resnet18:width=16"
    attack = ["none", "badnet", "wanet"]
    rate = [0.1, 0.01]                 # of attacks; a clean network has none
    recipe = "fast"
    epochs = 60                        # optional
    seed = [0, 1, 2]
    method = ["none", "lpp", "clp", "bnp"]
    clean = [0.05, 0.01]               # of methods that are given images
    clean_seed = [0]

Each entry but `poisoned` and `scores` is a value or a list of them; a `[[runs]]` is the product of its lists, and a
grid all of its runs. An unknown key is an error.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbackdoor.attacks import read_attack
from unbackdoor.data import dataset_spec
from unbackdoor.errors import SettingError, UnbackdoorError
from unbackdoor.experiments.cell import Cell, Correlation, Repair, Training, canonical, check_share, wants_images

NONE = "none"

#: Key of a run -> (type of one value, default; None where it must be given).
KEYS: dict[str, tuple[type, Any]] = {
    "data": (str, None),
    "arch": (str, None),
    "attack": (str, NONE),
    "rate": (float, 0.1),
    "target": (int, 0),
    "recipe": (str, "fast"),
    "epochs": (int, 0),
    "seed": (int, 0),
    "dtype": (str, "bfloat16"),
    "method": (str, NONE),
    "clean": (float, 0.05),
    "clean_seed": (int, 0),
    "poisoned": (float, 0.1),
    "scores": (bool, False),
    "correlation": (int, 0),
}
#: Least and largest value of whole numbers.
RANGES = {"target": (0, 10**6), "correlation": (0, 10**6), "seed": (0, 2**63 - 1), "clean_seed": (0, 2**63 - 1)}
#: The printed tables that may stand beside a grid, and figures that it is about.
PAPER = ("", "T1", "T2", "T3", "T4", "T5", "VGG", "F3", "F4", "F5")


@dataclass(frozen=True)
class Grid:
    """What is to be run.

    Attributes:
        name, title: for file names and for readers.
        paper: the printed table that stands beside it, or "".
        cells: every cell once; a training stands before what needs it.
        networks: folders of `unbackdoor train` that hold its networks; without any, they are trained.
    """

    name: str
    title: str
    paper: str
    cells: tuple[Cell, ...]
    networks: tuple[Path, ...] = ()

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The names of the data sets that it needs."""
        return tuple(dict.fromkeys(cell.data_name for cell in self.cells if cell.data_name is not None))


def read_grid(path: str | Path) -> Grid:
    """Read and check a grid; nothing is run.

    Raises:
        SettingError: the file is missing or no TOML, a key or a value in it is unknown, or out of its range.
    """
    path = Path(path)
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{path}: expected a grid: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{path}: expected a grid in TOML: {error}") from error
    unknown = set(record) - {"name", "title", "paper", "networks", "runs"}
    if unknown:
        known = "name, title, paper, networks and [[runs]]"
        raise SettingError(f"{path}: unknown key {sorted(unknown)[0]!r}; a grid has {known}")
    for key in ("name", "title", "paper"):
        if not isinstance(record.get(key, ""), str):
            raise SettingError(f"{path}: {key}: expected a text, got {record[key]!r}")
    if record.get("paper", "") not in PAPER:
        raise SettingError(f"{path}: paper: expected one of {', '.join(PAPER[1:])}, got {record['paper']!r}")
    networks = record.get("networks", [])
    if not isinstance(networks, list) or not all(isinstance(name, str) for name in networks):
        raise SettingError(f"{path}: networks: expected a list of folders, got {networks!r}")
    runs = record.get("runs")
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise SettingError(f"{path}: expected at least one [[runs]]")
    cells: dict[Cell, None] = {}
    for number, run in enumerate(runs, start=1):
        try:
            cells.update(dict.fromkeys(_cells(run)))
        except UnbackdoorError as error:
            raise SettingError(f"{path}: runs {number}: {error}") from error
    _check_names(path, cells)
    name = record.get("name") or path.stem
    folders = tuple(path.parent / name for name in networks)
    return Grid(name, record.get("title", name), record.get("paper", ""), tuple(cells), folders)


def _check_names(path: Path, cells: Iterable[Cell]) -> None:
    """One network under two names would stand in two columns, and count twice in every average."""
    named: dict[str, Cell] = {}
    for cell in cells:
        first = named.setdefault(canonical(cell.config), cell) if isinstance(cell, Training) else cell
        if first is not cell:
            raise SettingError(f"{path}: {first.title!r} and {cell.title!r} are one network: name it in one way")


def _cells(run: Mapping[str, Any]) -> Iterator[Cell]:
    """The product of a run's lists."""
    values = {key: _values(run, key) for key in KEYS}
    unknown = [key for key in run if key not in KEYS]
    if unknown:
        raise SettingError(f"unknown key {unknown[0]!r}; a run has {', '.join(KEYS)}")
    for data, arch, attack, recipe, epochs, seed, dtype, target in itertools.product(
        *(values[key] for key in ("data", "arch", "attack", "recipe", "epochs", "seed", "dtype", "target"))
    ):
        for rate in values["rate"] if attack != NONE else [0.0]:
            training = Training(
                data=data,
                arch=arch,
                attack=None if attack == NONE else attack,
                rate=rate,
                target=target if attack != NONE else 0,
                recipe=recipe,
                epochs=epochs or None,
                seed=seed,
                dtype=dtype,
            )
            _check(training)
            yield training
            yield from _behind(training, values)


def _behind(training: Training, values: Mapping[str, list[Any]]) -> Iterator[Cell]:
    """What is done with a trained network."""
    for images in values["correlation"]:
        if images and training.attack is not None:
            yield Correlation(training=training, images=images, seed=0)
    for method in values["method"]:
        if method == NONE:  # the training's own record holds its rates
            continue
        wants = wants_images(method)
        scores = values["scores"][0]
        if wants is None:
            yield Repair(training=training, method=method, clean=None, clean_seed=None, scores=scores)
            continue
        for clean, seed in itertools.product(values["clean"], values["clean_seed"]):
            check_share("clean", clean)
            check_share("poisoned", values["poisoned"][0])
            mixed = wants == "training images" and training.attack is not None
            yield Repair(
                training=training,
                method=method,
                clean=clean,
                clean_seed=seed,
                poisoned=values["poisoned"][0] if mixed else None,
                scores=scores,
            )


def _values(run: Mapping[str, Any], key: str) -> list[Any]:
    """The list behind a key, each value of the right type."""
    kind, default = KEYS[key]
    if key not in run:
        if default is None:
            raise SettingError(f"{key}: expected a value")
        return [default]
    given = run[key]
    items = given if isinstance(given, list) else [given]
    if not items:
        raise SettingError(f"{key}: expected a value or a list of them, got an empty list")
    if key in ("poisoned", "scores") and len(items) > 1:
        raise SettingError(f"{key}: expected one value, got {len(items)}")
    for item in items:
        right = type(item) is kind or (kind is float and type(item) is int)
        if not right:
            raise SettingError(f"{key}: expected {kind.__name__}, got {item!r}")
        low, high = RANGES.get(key, (item, item))
        if not low <= item <= high:
            raise SettingError(f"{key}: expected a whole number from {low} to {high}, got {item}")
    return [kind(item) for item in items]


def _check(training: Training) -> None:
    """Names, and what must fit together, before anything runs."""
    spec = dataset_spec(training.data)
    if training.attack is not None:
        if not 0 < training.rate <= 1:
            raise SettingError(f"rate: expected a share above 0 and up to 1, got {training.rate}")
        if "target=" in training.attack.partition(":")[2]:
            raise SettingError(f"attack {training.attack!r}: expected its class as a run's own key: target = 3")
        attack = read_attack(training.config["attack"])
        attack.check_data(spec)
        if attack.needs_classifier:
            raise SettingError(f"attack {attack.name}: needs a clean network first, which grids do not give it")
    _ = training.config
    if training.dtype not in ("float32", "bfloat16", "float16"):
        raise SettingError(f"dtype: expected float32, bfloat16 or float16, got {training.dtype!r}")
