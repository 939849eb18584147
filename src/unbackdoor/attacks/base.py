"""The interface of all attacks: put a trigger on images, and poison training data."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from unbackdoor.errors import SettingError
from unbackdoor.papers import Published
from unbackdoor.registry import Registry
from unbackdoor.settings import INTERNAL, Configured, check_settings, setting

if TYPE_CHECKING:
    from unbackdoor.data import DatasetSpec, LabelledImages

ATTACKS: Registry[type[Attack]] = Registry("attack")

Progress = Callable[[int, int], None]

#: A value this close below a whole level is that level, despite float32 rounding errors.
_WHOLE = 1e-3


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set.

    Attributes:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64; the attacker's class for poisoned images.
        mask: (N,) bool, which images carry the trigger.
        note: a note for the user, for example that the rate was capped.
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
        tensors: the trigger, if the settings do not determine it; made by `prepare`, saved in attack.safetensors.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    #: Whether poisoned images keep their true label.
    clean_label: ClassVar[bool] = False
    #: Raised by one when a change of the code changes the networks; older results are then not reused.
    version: ClassVar[int] = 1
    #: Whether it only works on images with 3 channels.
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
            raise SettingError(f"{self.name} does not change labels, so mapping=all-to-all is not defined for it")

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
                f"{self.name}: expected colour images (3 channels); {spec.title} has {spec.shown_channels}. Use "
                "another attack or data set"
            )

    @abstractmethod
    def check_rate(self, rate: float, labels: Tensor, *, batches: Sequence[int] = (), epochs: int = 1) -> None:
        """SettingError if a training run at this rate would not see a single attacked image.

        Args:
            rate: share of the training images.
            labels: (N,) labels of the training set.
            batches: the batch size of each step of an epoch.
            epochs: passes over the training set.
        """

    def target_labels(self, labels: Tensor, num_classes: int) -> Tensor:
        """(N,) the classes that the attacker wants for triggered images with these labels."""
        if self.mapping == "all-to-all":
            return (labels + 1) % num_classes
        return torch.full_like(labels, self.target)

    def prepare(
        self,
        data: LabelledImages,
        *,
        seed: int,
        classifier: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Make the trigger; returns the attack with it, or itself if the settings determine the trigger.

        Args:
            data: the training set.
            seed: for all random numbers.
            classifier: a clean network of the data set, for attacks with `needs_classifier`.
            progress: called with (steps done, total steps) if it takes long.
        """
        del data, seed, classifier, progress
        return self

    @abstractmethod
    def stamp(self, images: Tensor) -> Tensor:
        """Put the trigger on images: (N, C, H, W) uint8 -> the same shape and dtype; the input is not changed.

        Triggered images are 8-bit, like the image files that an attacker would publish. The same image always gets the
        same trigger.
        """

    @abstractmethod
    def poison(
        self, images: Tensor, labels: Tensor, *, rate: float, num_classes: int, generator: torch.Generator
    ) -> Poisoned:
        """Poison a training set: add the trigger to some images, and the attack's other changes.

        Args:
            images: (N, 3, H, W) uint8.
            labels: (N,) int64.
            rate: share of *all* training images that get the trigger, 0 to 1.
            num_classes: of the data set.
            generator: for all random numbers, on the CPU.

        Raises:
            SettingError: the rate is outside [0, 1] or poisons no image, or the trigger was not made with `prepare`.
        """

    def to_8_bits(self, values: Tensor) -> Tensor:
        """Pixel values -> uint8; values outside 0..255 are clipped."""
        values = values.clamp(0, 255)
        if self.rounding == "truncate":
            return (values + _WHOLE).floor().to(torch.uint8)
        return values.round().to(torch.uint8)

    def with_tensors(self, **tensors: Tensor) -> Self:
        """The same attack with these tensors as its trigger."""
        return dataclasses.replace(self, tensors={name: tensor.detach().cpu() for name, tensor in tensors.items()})

    def tensor(self, name: str, like: Tensor) -> Tensor:
        """A tensor of the trigger, on the device of `like`.

        Raises:
            SettingError: the trigger was not made with `prepare`.
        """
        if name not in self.tensors:
            raise SettingError(
                f"{self.name}: its trigger is not in its settings; load the attack.json of a training run, or make one "
                "with prepare(...)"
            )
        return self.tensors[name].to(like.device)

    def whole_image(self, name: str, images: Tensor) -> Tensor:
        """A tensor of the trigger with the shape of an image, on the images' device.

        Raises:
            SettingError: the trigger was not made with `prepare`, or is for images of another size.
        """
        tensor = self.tensor(name, images)
        if tensor.shape != images.shape[1:]:
            raise SettingError(
                f"{self.name}: its trigger was made for images of shape {tuple(tensor.shape)}, got "
                f"{tuple(images.shape[1:])}; use the data set that it was made for"
            )
        return tensor

    def network(self, prefix: str, build: Callable[[], nn.Module], like: Tensor) -> nn.Module:
        """A network of the trigger, made from its tensors `prefix*`; in eval mode, on the device of `like`.

        Raises:
            SettingError: the trigger was not made with `prepare`, the images are not in colour, or the trigger was
                made with other settings.
        """
        if like.ndim != 4 or like.shape[1] != 3:
            raise SettingError(f"{self.name}: expected colour images of shape (N, 3, H, W), got {tuple(like.shape)}")
        own = {name.removeprefix(prefix): self.tensor(name, like) for name in self.tensors if name.startswith(prefix)}
        if not own:
            self.tensor(prefix, like)  # raises the error
        try:
            with torch.device("meta"):
                network = build()
            network.load_state_dict(own, assign=True)
        except Exception as error:
            raise SettingError(
                f"{self.name}: its trigger does not fit its settings; use the attack.json that it was saved with"
            ) from error
        return network.eval()


def poison_count(rate: float, total: int) -> int:
    """round(rate * total); SettingError if the rate is outside [0, 1] or poisons no image."""
    if not 0 <= rate <= 1:
        raise SettingError(f"poison rate: expected a share between 0 and 1, got {rate}")
    count = round(rate * total)
    if rate > 0 and count == 0:
        raise SettingError(f"poison rate {rate} of {total} images poisons none; use a larger rate")
    return count
