"""What every attack can do: stamp its trigger on images, and backdoor a network through its training data."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from unbackdoor.data.augment import Augmentation, Fill, Shared
from unbackdoor.errors import SettingError
from unbackdoor.papers import Published
from unbackdoor.registry import Registry
from unbackdoor.settings import INTERNAL, Configured, build, check_settings, read_options, setting

if TYPE_CHECKING:
    from unbackdoor.data import DatasetSpec, LabelledImages

ATTACKS: Registry[type[Attack]] = Registry("attack")

#: Class methods that build an attack with the settings of another source: what may stand behind the @ of `bpp@...`.
PRESETS = ("backdoorbench", "as_published")

Progress = Callable[[int, int], None]

#: A level that arithmetic in float32 missed by less is that level, not the one below.
_WHOLE = 1e-3

#: (B, C, H, W) uint8 images and a generator -> the same images augmented and normalised, float32.
Vary = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set.

    Attributes:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64, the attacker's where poisoned.
        mask: (N,) bool, which images carry the trigger.
        note: what the user should be told, for example that the rate was capped.
    """

    images: Tensor
    labels: Tensor
    mask: Tensor
    note: str = ""

    @property
    def rate(self) -> float:
        """The share of images that carry the trigger."""
        return float(self.mask.float().mean())


@dataclass(frozen=True, kw_only=True)
class Attack(Configured, Published, ABC):
    """A backdoor attack; the fields are its hyper-parameters.

    Attributes:
        tensors: the trigger, where it is more than settings; made by `armed`, saved beside them.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    #: Whether poisoned images keep their true label.
    clean_label: ClassVar[bool] = False
    #: Raised by one when the attack's code comes to other networks: older results are then no longer taken for its own.
    version: ClassVar[int] = 1
    #: Whether its trigger comes from networks that read and write colour images.
    colour_only: ClassVar[bool] = False
    #: Whether a clean classifier is needed to make the poisoned images.
    needs_classifier: ClassVar[bool] = False

    target: int = setting(0, "the class that the trigger asks for")
    mapping: Literal["all-to-one", "all-to-all"] = setting(
        "all-to-one", '"all-to-one" asks for the target; "all-to-all" asks for the class after the image\'s own'
    )
    flat_norms: float = setting(
        0.0,
        "weight of a penalty on the spread of the channels' folded norms in each layer, with which an adaptive "
        "attacker hides from LPP and CLP; 0 is an ordinary attacker",
        least=0,
        below=math.inf,
        own=True,
    )
    rounding: Literal["round", "truncate"] = setting(
        "round",
        'how a triggered image becomes 8-bit: "round" to the nearest level, or "truncate" to the one below, as '
        "BackdoorBench's files are; then attacks that edit batches train with triggers that are not rounded at all",
        own=True,
        added=True,
    )
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False, metadata=INTERNAL)

    def __post_init__(self) -> None:
        check_settings(self, f"{self.name} ")
        if self.mapping == "all-to-all" and self.clean_label:
            raise SettingError(f"{self.name} leaves labels as they are: mapping=all-to-all is not defined for it")

    def check(self, *, num_classes: int, size: int) -> None:
        """SettingError unless the attack fits a data set with so many classes and images of `size` pixels a side."""
        del size
        if not 0 <= self.target < num_classes:
            raise SettingError(f"target: expected one of the classes 0 to {num_classes - 1}, got {self.target}")

    def check_data(self, spec: DatasetSpec) -> None:
        """SettingError unless the attack fits a data set's classes, image size and channels."""
        self.check(num_classes=spec.num_classes, size=spec.size)
        if self.colour_only and spec.channels != 3:
            raise SettingError(
                f"{self.name} is defined for colour images (3 channels), those of {spec.title} have "
                f"{spec.shown_channels}; take another attack, or colour images"
            )

    @abstractmethod
    def check_rate(self, rate: float, labels: Tensor, *, batches: Sequence[int] = (), epochs: int = 1) -> None:
        """SettingError if a training at this rate would see not a single attacked image.

        Args:
            rate: share of the training images.
            labels: (N,) of the training set.
            batches: how many images each step of an epoch takes.
            epochs: passes over the training set.
        """

    def goal(self, labels: Tensor, num_classes: int) -> Tensor:
        """(N,) the classes that the attacker wants for triggered images of classes `labels`."""
        if self.mapping == "all-to-all":
            return (labels + 1) % num_classes
        return torch.full_like(labels, self.target)

    def armed(
        self,
        data: LabelledImages,
        *,
        seed: int,
        classifier: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """The attack with its trigger made; itself where the settings say everything.

        Args:
            data: the training set: its size, its statistics, and for some attacks its images.
            seed: of everything that is drawn.
            classifier: a clean network of the data set, for attacks with `needs_classifier`.
            progress: called with (steps done, steps in all) where it takes long.
        """
        del data, seed, classifier, progress
        return self

    @abstractmethod
    def stamp(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> the same shape and dtype, with the trigger; the input is left as it is.

        Triggered images are 8-bit, as the image files that an attacker hands over are; the same image always gets the
        same trigger.
        """

    @abstractmethod
    def poison(
        self, images: Tensor, labels: Tensor, *, rate: float, num_classes: int, generator: torch.Generator
    ) -> Poisoned:
        """The training set as the attack leaves it: images with the trigger, and whatever it puts beside them.

        Args:
            images: (N, 3, H, W) uint8.
            labels: (N,) int64.
            rate: share of *all* training images that get the trigger, 0 to 1.
            num_classes: of the data set.
            generator: draws the images, on the CPU.

        Raises:
            SettingError: the rate is outside [0, 1], or poisons not a single image; or the attack was never armed.
        """

    def to_8_bits(self, values: Tensor) -> Tensor:
        """Pixels in 0..255 -> uint8; beyond the range they are clipped."""
        values = values.clamp(0, 255)
        if self.rounding == "truncate":
            return (values + _WHOLE).floor().to(torch.uint8)
        return values.round().to(torch.uint8)

    def with_tensors(self, **tensors: Tensor) -> Self:
        """The same attack with these tensors as its trigger."""
        return dataclasses.replace(self, tensors={name: tensor.detach().cpu() for name, tensor in tensors.items()})

    def tensor(self, name: str, like: Tensor) -> Tensor:
        """A part of the trigger, on the device of `like`.

        Raises:
            SettingError: the attack was never armed.
        """
        if name not in self.tensors:
            raise SettingError(
                f"{self.name}: its trigger is not in its settings; load the attack.json of a training run, or make one "
                "with armed(...)"
            )
        return self.tensors[name].to(like.device)

    def whole_image(self, name: str, images: Tensor) -> Tensor:
        """A part of the trigger that has a value for each pixel of each of the images, on their device.

        Raises:
            SettingError: the attack was never armed, or for images of another size.
        """
        tensor = self.tensor(name, images)
        if tensor.shape != images.shape[1:]:
            raise SettingError(
                f"{self.name}: its trigger is for images of shape {tuple(tensor.shape)}, these have "
                f"{tuple(images.shape[1:])}; give the data set that it was made for"
            )
        return tensor

    def network(self, prefix: str, build: Callable[[], nn.Module], like: Tensor) -> nn.Module:
        """A network of the trigger, in eval mode on the device of `like`; its tensors' names begin with `prefix`.

        Raises:
            SettingError: the attack was never armed, the images have no colours, or the settings that `build` uses are
                not the trigger's.
        """
        if like.ndim != 4 or like.shape[1] != 3:
            raise SettingError(
                f"{self.name}: expected colour images (N, 3, H, W), which its trigger is defined for, got "
                f"{tuple(like.shape)}"
            )
        own = {name.removeprefix(prefix): self.tensor(name, like) for name in self.tensors if name.startswith(prefix)}
        if not own:
            self.tensor(prefix, like)  # says so
        try:
            with torch.device("meta"):
                network = build()
            network.load_state_dict(own, assign=True)
        except Exception as error:
            raise SettingError(
                f"{self.name}: its trigger does not fit its settings; give the attack.json that it was saved with"
            ) from error
        return network.eval()


@dataclass(frozen=True, kw_only=True)
class DataPoisoning(Attack):
    """An attack on the training set alone: some images are changed once, then training is ordinary."""

    def poison(
        self, images: Tensor, labels: Tensor, *, rate: float, num_classes: int, generator: torch.Generator
    ) -> Poisoned:
        """Stamp round(rate * N) images, and relabel them unless the attack is of the clean-label kind."""
        self.check_rate(rate, labels)
        count = poison_count(rate, len(labels))
        candidates = self.candidates(labels)
        order = torch.randperm(len(candidates), generator=generator)
        chosen = candidates[order[:count]]
        note = ""
        if len(chosen) < count:
            note = (
                f"{self.name}: only {len(candidates)} of {len(labels)} training images have class {self.target}; "
                f"the rate is {len(chosen) / len(labels):.4f} instead of {rate}"
            )
        mask = torch.zeros(len(labels), dtype=torch.bool)
        mask[chosen] = True
        images, labels = images.clone(), labels.clone()
        if len(chosen):
            images[chosen] = self.poisoned_images(images[chosen], chosen)
        if not self.clean_label:
            labels[chosen] = self.goal(labels[chosen], num_classes)
        return Poisoned(images, labels, mask, note)

    def check_rate(self, rate: float, labels: Tensor, *, batches: Sequence[int] = (), epochs: int = 1) -> None:
        """It is of the images, not of the batches."""
        del batches, epochs
        if poison_count(rate, len(labels)) and not len(self.candidates(labels)):
            raise SettingError(f"{self.name}: no training image has the target class {self.target}")

    def candidates(self, labels: Tensor) -> Tensor:
        """Indices of the images that may be poisoned: all, or those of the target class."""
        if self.clean_label:
            return (labels == self.target).nonzero().flatten()
        return torch.arange(len(labels))

    def poisoned_images(self, images: Tensor, indices: Tensor) -> Tensor:
        """What training images become; the trigger, unless training and test differ.

        Args:
            images: (n, 3, H, W) uint8.
            indices: (n,) their places in the training set.
        """
        del indices
        return self.stamp(images)


@dataclass(frozen=True, kw_only=True)
class TrainingControl(Attack):
    """An attack by whoever trains: each batch is edited on the fly."""

    @property
    def augmentation(self) -> Augmentation | None:
        """How images are varied behind the trigger; None is as the recipe says."""
        return None

    def trained_on(self, values: Tensor) -> Tensor:
        """Pixels in 0..255 as training sees them: 8-bit, or floats where it is only files that are truncated."""
        return values.clamp(0, 255) if self.rounding == "truncate" else self.to_8_bits(values)

    def session(self, *, rate: float, spec: DatasetSpec, seed: int, epochs: int, device: torch.device) -> Session:
        """One training run's worth of the attack."""
        del seed, epochs, device
        return Session(self, rate=rate, spec=spec)

    def attacked(self, rate: float, size: int) -> float:
        """How many images of a batch of `size` are attacked; below one, on average."""
        return whole(rate * size) if rate * size >= 1 else rate * size

    def check_rate(self, rate: float, labels: Tensor, *, batches: Sequence[int] = (), epochs: int = 1) -> None:
        """Of each batch, or of some, over the whole training."""
        del labels
        expected = epochs * sum(self.attacked(rate, size) for size in batches)
        if rate > 0 and expected < 1:
            raise SettingError(
                f"poison rate {rate}: expected at least one attacked image, {epochs} epochs would see {expected:.2g} "
                "on average; use a larger rate"
            )

    @abstractmethod
    def mix(self, images: Tensor, labels: Tensor, *, count: int, num_classes: int, generator: torch.Generator) -> Mixed:
        """Edit a batch before augmentation.

        Args:
            images: (B, 3, H, W) uint8.
            labels: (B,) int64.
            count: the first `count` images are attacked.
            num_classes: of the data set.
            generator: on the CPU.
        """

    def poison(
        self, images: Tensor, labels: Tensor, *, rate: float, num_classes: int, generator: torch.Generator
    ) -> Poisoned:
        """All images as one batch in a random order: round(rate * N) attacked ones, and the decoys beside them."""
        count = min(poison_count(rate, len(labels)), whole(self.attacked(1.0, len(labels))))
        order = torch.randperm(len(labels), generator=generator)
        mixed = self.mix(images[order], labels[order], count=count, num_classes=num_classes, generator=generator)
        back = order.argsort()
        edited = mixed.images if mixed.images.dtype == torch.uint8 else self.to_8_bits(mixed.images)
        return Poisoned(edited[back], mixed.labels[back], back < mixed.attacked)


@dataclass(frozen=True, kw_only=True)
class PostAugmented(TrainingControl):
    """An attack that brings an augmentation of its own, behind the trigger: WaNet's (its Sec. 4), and BPP's."""

    shared: Shared = setting(
        "nothing",
        'what the images of a batch have in common: "nothing"; the "coins" that say whether they are cropped and '
        'rotated; or "all": one crop, one angle and one mirror image for the whole batch',
        own=True,
        added=True,
    )
    fill: Fill = setting(
        "black",
        'what a crop or a rotation brings in from outside: "black", or the data set\'s "mean" colour',
        own=True,
        added=True,
    )

    @property
    def augmentation(self) -> Augmentation:
        """What makes a warp survive crops and small turns."""
        return Augmentation(padding=5, crop_share=0.8, degrees=10, rotate_share=0.5, shared=self.shared, fill=self.fill)


@dataclass(frozen=True)
class Mixed:
    """A batch that an attack has edited: attacked images first, then `decoys` with their own labels, then the rest.

    Attributes:
        images: (B, 3, H, W) uint8; float in 0..255 where the attack does not round what is trained on.
        labels: (B,) int64.
        attacked, decoys: how many of each.
    """

    images: Tensor
    labels: Tensor
    attacked: int
    decoys: int


class Session:
    """A training-controlled attack during one run: what the training loop calls.

    Args:
        attack: the attack.
        rate: share of each batch that is attacked.
        spec: the data set.
    """

    def __init__(self, attack: TrainingControl, *, rate: float, spec: DatasetSpec) -> None:
        poison_count(rate, 10**9)  # checks the range
        self.attack: TrainingControl = attack
        self.rate = rate
        self.spec = spec

    def begin(self, images: Tensor, *, batch_size: int, vary: Vary, progress: Progress | None = None) -> None:
        """Before the first epoch.

        Args:
            images: (N, 3, H, W) uint8, the training images.
            batch_size: of the recipe.
            vary: the augmentation of this run.
            progress: called with (steps done, steps in all).
        """

    def before(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Edit a uint8 batch before augmentation; it may come back as floats in 0..255."""
        count = attacked_in_batch(self.rate, len(labels), generator)
        mixed = self.attack.mix(images, labels, count=count, num_classes=self.spec.num_classes, generator=generator)
        return mixed.images, mixed.labels

    def after(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Edit a normalised batch behind augmentation; the third is a loss to add, or None."""
        del generator
        return x, labels, None

    def step(self, done: float) -> None:
        """Behind the gradient step; `done` is the share of all steps that lie behind."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""

    def result(self) -> Attack:
        """The attack as it is after training."""
        return self.attack


def poison_count(rate: float, total: int) -> int:
    """round(rate * total); SettingError if the rate is outside [0, 1] or poisons not a single image."""
    if not 0 <= rate <= 1:
        raise SettingError(f"poison rate: expected a share between 0 and 1, got {rate}")
    count = round(rate * total)
    if rate > 0 and count == 0:
        raise SettingError(f"poison rate {rate} of {total} images poisons none; use a larger rate")
    return count


def attacked_in_batch(rate: float, size: int, generator: torch.Generator) -> int:
    """As `TrainingControl.attacked`; below one, one with that probability."""
    wanted = rate * size
    if wanted >= 1 or wanted == 0:
        return whole(wanted)
    return int(torch.rand((), generator=generator) < wanted)


def others(places: slice, size: int, *, generator: torch.Generator) -> Tensor:
    """(n,) for each of these places in a batch of `size` another place, never itself, uniformly drawn."""
    own = torch.arange(size)[places]
    if not len(own):
        return own
    if size < 2:
        raise SettingError("batch size: an image needs another one beside it, got a batch of 1")
    return (own + torch.randint(1, size, (len(own),), generator=generator)) % size


def whole(number: float) -> int:
    """int(number), where 0.29 * 100 is 29 although it is computed as 28.999999999999996."""
    return int(number + 1e-9)


def parse_attack(text: str, *, target: int | None = None) -> Attack:
    """`badnet`, `badnet:size=3,pattern=white`, `bpp@as_published` or `bpp@as_published:target=3` -> an attack.

    Args:
        text: a name, a preset behind "@", and settings behind ":", which replace the preset's.
        target: the attacker's class; None is what the text says, else 0.

    Raises:
        SettingError: the attack, the preset or a setting is unknown, or the text asks for another target.
    """
    head, _, options = text.partition(":")
    name, at, preset = head.partition("@")
    kind = ATTACKS[name]
    settings = _of_preset(kind, preset) if at else {}
    attack = build(kind, f"attack {head}", {**settings, "target": target or 0, **read_options(options)})
    check_target_class(attack, target, f"attack {text!r}")
    return attack


def presets_of(kind: type[Attack]) -> tuple[str, ...]:
    """The presets that an attack has."""
    return tuple(preset for preset in PRESETS if hasattr(kind, preset))


def _of_preset(kind: type[Attack], preset: str) -> dict[str, Any]:
    """Its settings."""
    if preset not in presets_of(kind):
        has = ", ".join(presets_of(kind)) or "none"
        raise SettingError(f"attack {kind.name}: unknown preset {preset!r}; it has {has}")
    settings = describe_attack(getattr(kind, preset)())
    del settings["name"]
    return settings


def check_target_class(attack: Attack, target: int | None, where: str) -> None:
    """SettingError if a target was asked for that is not the attack's."""
    if target is not None and target != attack.target:
        raise SettingError(f"{where}: its target is {attack.target}, not {target}; leave out --target")


def describe_attack(attack: Attack) -> dict[str, Any]:
    """Name and settings, ready for JSON; `read_attack` reads it back."""
    return {"name": attack.name, **attack.settings()}


def read_attack(record: Mapping[str, Any]) -> Attack:
    """The inverse of `describe_attack`.

    Raises:
        SettingError: the record has no name, or an unknown setting.
    """
    settings = dict(record)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise SettingError("attack record: expected an entry 'name'")
    return build(ATTACKS[name], f"attack {name}", settings)
