"""Cells: one training, or one repair of a trained network, as a value that is identified by its content.

A cell's key is a digest of its canonical configuration, of the data set's content, and of the version of the code that
performs it. The configuration includes defaults, so that a changed default makes another cell. A setting that a method
or an attack got later (`added`) is included only if it is not at its default, so that the keys of older results stay
valid.
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
from unbackdoor.train import Recipe, parse_recipe

#: The version of each kind's code, raised by one when a change of the code changes results; older records are then not
#: reused. Keys and records call it "epoch", as existing ones do.
VERSIONS = {"training": 1, "repair": 1, "correlation": 1, "probe": 1}

Config = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One experiment; its fields are the values from a grid."""

    kind: ClassVar[str]

    @property
    def config(self) -> Config:
        """All settings that its result depends on, ready for JSON.

        Raises:
            SettingError, ArchitectureError: a name is unknown, or a value out of range.
        """
        raise NotImplementedError

    @property
    def data_name(self) -> str | None:
        """The data set that it needs."""
        raise NotImplementedError

    @property
    def needs(self) -> Training | None:
        """The training that must be done first."""
        return None

    @property
    def versions(self) -> dict[str, int]:
        """The versions of the attack's and the method's code that are above 1."""
        return {}

    @property
    def title(self) -> str:
        """The cell as one line of text."""
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
        arch: the network, as in `--arch`.
        attack: the attack, as in `--attack`; None trains a clean network.
        rate: share of the training images that carry the trigger.
        target: the attacker's class.
        recipe: name of a recipe.
        epochs: number of epochs; None takes the recipe's.
        seed: for the weights, poisoned images, order and augmentation.
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
        """Check all names and settings before anything runs.

        Raises:
            SettingError, ArchitectureError: a name is unknown, a value is out of range, or two do not fit.
        """
        spec = dataset_spec(self.data)
        if self.attack is not None:
            if not 0 < self.rate <= 1:
                raise SettingError(f"rate: expected a share above 0 and up to 1, got {self.rate}")
            if "target=" in self.attack.partition(":")[2]:
                raise SettingError(f"attack {self.attack!r}: expected the target class as a key of the run: target = 3")
            attack = read_attack(self.config["attack"])
            attack.check_data(spec)
            if attack.needs_classifier:
                raise SettingError(
                    f"attack {attack.name} needs a clean network, which a grid cannot give; use unbackdoor train"
                )
        _ = self.config
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise SettingError(f"dtype: expected float32, bfloat16 or float16, got {self.dtype!r}")

    def build_recipe(self) -> Recipe:
        """The recipe with this cell's number of epochs."""
        return parse_recipe(self.recipe, self.epochs)


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
        method: the method, as in `defend --method`; "name@preset" takes a preset's settings.
        clean: share of the training images for the method; None for a method that uses none.
        clean_seed: for the choice of these images and the method's random numbers; None likewise.
        poisoned: share of these images with the trigger, for methods that use training images; None for others.
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
        """A repair whose method gets the images that it needs, and no others.

        Raises:
            SettingError: the method is unknown, or a share is out of range.
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
    """The correlation between a channel's activation by the trigger and its Lipschitz constant (Figure 3).

    Attributes:
        training: a backdoored network.
        images: number of test images, each used with and without the trigger.
        seed: for their choice.
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
    """A cell that does nothing, to measure engines and stores.

    Attributes:
        number: identifies it.
        seconds: how long it sleeps.
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


#: JSON with equal bytes for equal values.
canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def wants_images(method: str) -> str | None:
    """The images that a method needs: "clean images", "training images", or None."""
    needs: str = parse_method(method).needs
    return None if needs == "nothing" else needs


def method_origins(text: str) -> dict[str, str]:
    """Each setting of a method -> where its value comes from."""
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
    """Empty for version 1, so that the keys of older results stay valid."""
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
        arch.build(device="meta")  # checks its options
    return str(arch)


@functools.cache
def _attack(text: str, target: int) -> Config:
    named = "target=" in text.partition(":")[2]
    return attack_config(parse_attack(text) if named else parse_attack(text, target=target))


@functools.cache
def _recipe(name: str, epochs: int | None) -> Config:
    return recipe_config(parse_recipe(name, epochs))


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
    """SettingError unless 0 < share <= 1."""
    if not 0 < value <= 1:
        raise SettingError(f"{name}: expected a share above 0 and up to 1, got {value}")
