"""A grid in TOML: the experiments to run, as products of lists.

    name = "small"
    title = "..."
    paper = "T1"                       # optional: the published table to compare with
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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from msgspec import Meta, Struct

from unbackdoor.errors import SettingError, UnbackdoorError
from unbackdoor.experiments.cell import Cell, Correlation, Repair, Training, canonical
from unbackdoor.records import typed

T = TypeVar("T")

NONE = "none"
#: The published tables and figures that a grid may be compared with.
PAPER = ("", "T1", "T2", "T3", "T4", "T5", "VGG", "F3", "F4", "F5")

Some: TypeAlias = T | Annotated[list[T], Meta(min_length=1)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Number = Annotated[int, Meta(ge=0, le=10**6)]


class Run(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[runs]] of a file: values or lists of them."""

    data: Some[str]
    arch: Some[str]
    attack: Some[str] = NONE
    rate: Some[float] = 0.1
    target: Some[Number] = 0
    recipe: Some[str] = "fast"
    epochs: Some[int] = 0
    seed: Some[Seed] = 0
    dtype: Some[str] = "bfloat16"
    method: Some[str] = NONE
    clean: Some[float] = 0.05
    clean_seed: Some[Seed] = 0
    poisoned: float = 0.1
    scores: bool = False
    correlation: Some[Number] = 0

    def product(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Every combination of the values of some keys."""
        values = (getattr(self, name) for name in names)
        return itertools.product(*(value if isinstance(value, list) else [value] for value in values))


class File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A grid file's content."""

    name: str = ""
    title: str = ""
    paper: str = ""
    networks: list[str] = []
    runs: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Grid:
    """The experiments of one file.

    Attributes:
        name, title: for file names and for readers.
        paper: the published table that it is compared with, or "".
        cells: every cell once; a training comes before the cells that need it.
        networks: folders of `unbackdoor train` with its networks; if there are none, they are trained.
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
        SettingError: the file is missing or not TOML, or a key or value in it is unknown or out of range.
    """
    path = Path(path)
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{path}: expected a grid: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{path}: expected a grid in TOML: {error}") from error
    try:
        file = typed(record, File)
    except ValueError as error:
        raise SettingError(f"{path}: {error}") from error
    if file.paper not in PAPER:
        raise SettingError(f"{path}: paper: expected one of {', '.join(PAPER[1:])}, got {file.paper!r}")
    if not file.runs:
        raise SettingError(f"{path}: expected at least one [[runs]]")
    cells: dict[Cell, None] = {}
    for number, run in enumerate(file.runs, start=1):
        try:
            cells.update(dict.fromkeys(_cells(typed(run, Run))))
        except (ValueError, UnbackdoorError) as error:
            raise SettingError(f"{path}: runs {number}: {error}") from error
    _check_names(path, cells)
    name = file.name or path.stem
    folders = tuple(path.parent / folder for folder in file.networks)
    return Grid(name, file.title or name, file.paper, tuple(cells), folders)


def _check_names(path: Path, cells: Iterable[Cell]) -> None:
    """SettingError if one network has two names, since it would count twice in every average."""
    named: dict[str, Cell] = {}
    for cell in cells:
        first = named.setdefault(canonical(cell.config), cell) if isinstance(cell, Training) else cell
        if first is not cell:
            raise SettingError(f"{path}: {first.title!r} and {cell.title!r} are the same network; use one name for it")


def _cells(run: Run) -> Iterator[Cell]:
    """The product of a run's lists."""
    keys = ("data", "arch", "attack", "recipe", "epochs", "seed", "dtype", "target")
    for data, arch, attack, recipe, epochs, seed, dtype, target in run.product(*keys):
        for (rate,) in run.product("rate") if attack != NONE else [(0.0,)]:
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
            training.check()
            yield training
            yield from _after_training(training, run)


def _after_training(training: Training, run: Run) -> Iterator[Cell]:
    """The cells that use a trained network; none for the method "none", as the training's record has its rates."""
    for (images,) in run.product("correlation"):
        if images and training.attack is not None:
            yield Correlation(training=training, images=images, seed=0)
    for method, clean, seed in run.product("method", "clean", "clean_seed"):
        if method != NONE:
            yield Repair.of(training, method, clean, seed, poisoned=run.poisoned, scores=run.scores)
