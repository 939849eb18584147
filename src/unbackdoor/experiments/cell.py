"""Cells: one training, or one repair of a trained network, as a value whose content is its name.

A cell's key is a digest of its canonical configuration, of the data set's content, and of the version of the code that
performs it. Defaults are written out in the configuration, so that a cell whose defaults have changed is another cell;
a setting that a method or an attack got later (`added`) is written out only where it is not at its default, so
that the keys of older results stand.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unbackdoor.attacks import Attack, describe_attack, parse_attack, read_attack
from unbackdoor.data import dataset_spec
from unbackdoor.defences.table import parse_method
from unbackdoor.errors import SettingError
from unbackdoor.models import parse_arch
from unbackdoor.settings import distinguishing, settings_of
from unbackdoor.train import RECIPES, Recipe

#: Of each kind's code, raised by one whenever it comes to other results: its old records are then no longer taken for
#: its new ones. In keys and records it is called "epoch", as in those that are there.
VERSIONS = {"training": 1, "repair": 1, "correlation": 1, "probe": 1}

Config = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One experiment; its fields are what a grid says."""

    kind: ClassVar[str]

    @property
    def config(self) -> Config:
        """Everything that its result depends on but data and code, ready for JSON.

        Raises:
            SettingError, ArchitectureError: something in it is unknown or out of its range.
        """
        raise NotImplementedError

    @property
    def data_name(self) -> str | None:
        """The data set that it needs."""
        raise NotImplementedError

    @property
    def needs(self) -> Training | None:
        """The training that must be done before."""
        return None

    @property
    def versions(self) -> dict[str, int]:
        """Of the attack and the method, where their code has come to other results since it was first written."""
        return {}

    @property
    def title(self) -> str:
        """For a reader, on one line."""
        raise NotImplementedError

    def key(self, digests: Mapping[str, str]) -> str:
        """32 hexadecimal digits.

        Args:
            digests: name of a data set -> digest of its content.
        """
        content = {
            "kind": self.kind,
            "epoch": VERSIONS[self.kind] if self.needs is None else [VERSIONS[self.kind], VERSIONS["training"]],
            "config": self.config,
            "data": None if self.data_name is None else digests[self.data_name],
            **self.versions,
        }
        return hashlib.sha256(canonical(content).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Training(Cell):
    """A network, trained with or without a backdoor.

    Attributes:
        data: name of a data set.
        arch: as behind `--arch`.
        attack: as behind `--attack`; None trains a clean network.
        rate: share of the training images that carry the trigger.
        target: the attacker's class.
        recipe: name of a recipe.
        epochs: instead of the recipe's number; None takes that.
        seed: of weights, poisoned images, order and augmentation.
        dtype: of the stored weights.
    """

    kind: ClassVar[str] = "training"

    data: str
    arch: str
    attack: str | None
    rate: float
    target: int
    recipe: str
    epochs: int | None
    seed: int
    dtype: str

    @property
    def config(self) -> Config:
        return {
            "data": self.data,
            "arch": _arch(self.arch, self.data),
            "attack": None if self.attack is None else _attack(self.attack, self.target),
            "rate": None if self.attack is None else self.rate,
            "recipe": _recipe(self.recipe, self.epochs),
            "seed": self.seed,
            "dtype": self.dtype,
        }

    @property
    def versions(self) -> dict[str, int]:
        return {} if self.attack is None else _attack_version(self.attack)

    @property
    def data_name(self) -> str:
        return self.data

    @property
    def title(self) -> str:
        attack = "clean" if self.attack is None else f"{self.attack} {self.rate:g}"
        more = [f"target {self.target}"] if self.target else []
        more += [self.recipe] if self.recipe != "fast" else []
        more += [f"{self.epochs} epochs"] if self.epochs is not None else []
        more += [self.dtype] if self.dtype != "bfloat16" else []
        return " ".join([self.data, self.arch, attack, *more, f"seed {self.seed}"])

    def check(self) -> None:
        """Names, and what must fit together, before anything runs.

        Raises:
            SettingError, ArchitectureError: something is unknown, out of its range, or does not fit.
        """
        spec = dataset_spec(self.data)
        if self.attack is not None:
            if not 0 < self.rate <= 1:
                raise SettingError(f"rate: expected a share above 0 and up to 1, got {self.rate}")
            if "target=" in self.attack.partition(":")[2]:
                raise SettingError(f"attack {self.attack!r}: expected its class as a run's own key: target = 3")
            attack = read_attack(self.config["attack"])
            attack.check_data(spec)
            if attack.needs_classifier:
                raise SettingError(f"attack {attack.name}: needs a clean network first, which grids do not give it")
        _ = self.config
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise SettingError(f"dtype: expected float32, bfloat16 or float16, got {self.dtype!r}")

    def build_recipe(self) -> Recipe:
        """The recipe with this cell's number of epochs."""
        recipe = RECIPES[self.recipe]
        return recipe if self.epochs is None else dataclasses.replace(recipe, epochs=self.epochs)


@dataclass(frozen=True, kw_only=True)
class _AfterTraining(Cell):
    """A cell that works on a trained network."""

    training: Training

    @property
    def versions(self) -> dict[str, int]:
        return self.training.versions

    @property
    def data_name(self) -> str:
        return self.training.data

    @property
    def needs(self) -> Training:
        return self.training


@dataclass(frozen=True, kw_only=True)
class Repair(_AfterTraining):
    """A trained network, repaired by a method and measured.

    Attributes:
        training: the network.
        method: as behind `defend --method`; "name@preset" takes a preset's settings.
        clean: share of the training images that the method is given; None for a method that wants none.
        clean_seed: of their draw and of what the method draws; None likewise.
        poisoned: share of them with the trigger, for methods that want training images; None for others.
        scores: whether the record keeps every channel's score.
    """

    kind: ClassVar[str] = "repair"

    method: str
    clean: float | None
    clean_seed: int | None
    poisoned: float | None = None
    scores: bool = False

    @classmethod
    def of(
        cls, training: Training, method: str, clean: float, clean_seed: int, *, poisoned: float, scores: bool
    ) -> Repair:
        """A repair that is given what its method wants, and nothing else.

        Raises:
            SettingError: the method is unknown, or a share out of its range.
        """
        wants = wants_images(method)
        if wants is None:
            return cls(training=training, method=method, clean=None, clean_seed=None, scores=scores)
        _check_share("clean", clean)
        _check_share("poisoned", poisoned)
        return cls(
            training=training,
            method=method,
            clean=clean,
            clean_seed=clean_seed,
            poisoned=poisoned if wants == "training images" and training.attack is not None else None,
            scores=scores,
        )

    @property
    def versions(self) -> dict[str, int]:
        return {**super().versions, **_method_version(self.method)}

    @property
    def config(self) -> Config:
        return {
            "training": self.training.config,
            "method": method_config(self.method),
            "clean": self.clean,
            "clean_seed": self.clean_seed,
            "poisoned": self.poisoned,
            "scores": self.scores,
        }

    @property
    def title(self) -> str:
        more = [] if self.clean is None else [f"{self.clean:g} clean, seed {self.clean_seed}"]
        more += [] if self.poisoned is None else [f"{self.poisoned:g} poisoned"]
        more += ["with scores"] if self.scores else []
        return f"{self.training.title}: {self.method}" + (f" ({', '.join(more)})" if more else "")


@dataclass(frozen=True, kw_only=True)
class Correlation(_AfterTraining):
    """How far channels that a trigger activates are those with a large Lipschitz constant (Figure 3).

    Attributes:
        training: a backdoored network.
        images: test images, and as many with the trigger.
        seed: of their draw.
    """

    kind: ClassVar[str] = "correlation"

    images: int
    seed: int

    @property
    def config(self) -> Config:
        return {"training": self.training.config, "images": self.images, "seed": self.seed}

    @property
    def title(self) -> str:
        return f"{self.training.title}: correlation on {self.images} images"


@dataclass(frozen=True, kw_only=True)
class Probe(Cell):
    """A cell that does nothing, for measuring engines and stores.

    Attributes:
        number: its name.
        seconds: how long it takes over that.
    """

    kind: ClassVar[str] = "probe"

    number: int
    seconds: float = 0.0

    @property
    def config(self) -> Config:
        return {"number": self.number, "seconds": self.seconds}

    @property
    def data_name(self) -> None:
        return None

    @property
    def title(self) -> str:
        return f"probe {self.number}"


#: JSON of which equal values have equal bytes.
canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def wants_images(method: str) -> str | None:
    """What a method is given beside the network: "clean images", "training images", or None."""
    needs: str = parse_method(method).needs
    return None if needs == "nothing" else needs


def method_origins(text: str) -> dict[str, str]:
    """Setting of a method -> where its value comes from."""
    method = parse_method(text)
    name, _, options = text.partition(":")
    preset = name.partition("@")[2]
    usual, about = type(method)(), settings_of(type(method))
    given = {option.partition("=")[0].strip() for option in options.split(",") if option}

    def origin(key: str) -> str:
        if key in given:
            return "given in the grid"
        if getattr(method, key) != getattr(usual, key):
            return f"preset {preset}"
        return "default (this package's choice)" if about[key].own else f"default ({method.source()})"

    origins = {key: origin(key) for key in method.settings()}
    if getattr(method, "holdout", 0):
        origins["threshold"] = "chosen on held-out clean images"
    return origins


@functools.cache
def _attack_version(text: str) -> dict[str, int]:
    """Nothing for the first version: the keys of older results stand."""
    version = parse_attack(text).version
    return {"attack_version": version} if version > 1 else {}


@functools.cache
def _method_version(text: str) -> dict[str, int]:
    """As `_attack_version`."""
    version = parse_method(text).version
    return {"method_version": version} if version > 1 else {}


@functools.cache
def _arch(text: str, data: str) -> str:
    arch = parse_arch(text).for_classes(dataset_spec(data).num_classes)
    if arch.source == "own":
        arch.build(device="meta")  # its options, before anything runs
    return str(arch)


@functools.cache
def _attack(text: str, target: int) -> Config:
    named = "target=" in text.partition(":")[2]
    return attack_config(parse_attack(text) if named else parse_attack(text, target=target))


@functools.cache
def _recipe(name: str, epochs: int | None) -> Config:
    return recipe_config(RECIPES[name] if epochs is None else dataclasses.replace(RECIPES[name], epochs=epochs))


def attack_config(attack: Attack) -> Config:
    """An attack's name and its settings, ready for JSON."""
    return distinguishing(attack, describe_attack(attack))


def recipe_config(recipe: Recipe) -> Config:
    """A recipe's settings, ready for JSON."""
    return distinguishing(recipe, dataclasses.asdict(recipe))


@functools.cache
def method_config(text: str) -> Config:
    """A method's name and its settings, ready for JSON."""
    method = parse_method(text)
    settings = {
        key: ("inf" if value > 0 else "-inf")
        if isinstance(value, float) and value in (float("inf"), -float("inf"))
        else value
        for key, value in method.settings().items()
    }
    return {"name": method.name, **distinguishing(method, settings)}


def _check_share(name: str, value: float) -> None:
    """SettingError unless a share lies above 0 and up to 1."""
    if not 0 < value <= 1:
        raise SettingError(f"{name}: expected a share above 0 and up to 1, got {value}")
