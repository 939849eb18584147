"""What is known about each data set: the one place for classes, sizes, means and standard deviations."""

from __future__ import annotations

from dataclasses import dataclass

from unbackdoor.data import class_names
from unbackdoor.errors import SettingError
from unbackdoor.registry import Registry

SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A data set's constants.

    Attributes:
        name: what a user types.
        title: what a reader sees.
        classes: the classes' names, in label order.
        size: height and width in pixels.
        mean, std: per channel, of images in [0, 1]; what networks trained here expect as normalisation. Three of each
            for colour images, one for grey ones.
        flip: whether a horizontal mirror image keeps its label (not so for traffic signs).
        resize: whether an image of another size is resized; else it is an error.
        columns: names that the image column may have in the hub's parquet layout.
        label_columns: names that the label column may have there.
        splits: what the layout calls the training part and the test part.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    resize: bool = False
    columns: tuple[str, ...] = ("image", "img")
    label_columns: tuple[str, ...] = ("label",)
    splits: tuple[str, str] = SPLITS

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def channels(self) -> int:
        """3 for colour images, 1 for grey ones."""
        return len(self.mean)

    @property
    def shown_channels(self) -> str:
        """For a message."""
        return "1 channel" if self.channels == 1 else f"{self.channels} channels"

    def stored_split(self, split: str) -> str:
        """What the layout calls "train" or "test"; any other word is a SettingError."""
        if split not in SPLITS:
            raise SettingError(f"split: expected {' or '.join(SPLITS)}, got {split!r}")
        return self.splits[SPLITS.index(split)]


DATASETS: Registry[DatasetSpec] = Registry("data set")

CIFAR10 = DATASETS.add(
    "cifar10",
    DatasetSpec(
        name="cifar10",
        title="CIFAR-10",
        classes=class_names.CIFAR10,
        size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.243, 0.261),
        flip=True,
    ),
)

CIFAR100 = DATASETS.add(
    "cifar100",
    DatasetSpec(
        name="cifar100",
        title="CIFAR-100",
        classes=class_names.CIFAR100,
        size=32,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        flip=True,
        label_columns=("fine_label", "label"),
    ),
)

#: The photographs have sizes from 15 to 250 pixels. Normalised by nothing, as is usual.
GTSRB = DATASETS.add(
    "gtsrb",
    DatasetSpec(
        name="gtsrb",
        title="GTSRB",
        classes=class_names.GTSRB,
        size=32,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        flip=False,
        resize=True,
    ),
)

#: Its test part is the official validation part: the official test part has no labels.
TINY_IMAGENET = DATASETS.add(
    "tiny_imagenet",
    DatasetSpec(
        name="tiny_imagenet",
        title="Tiny ImageNet",
        classes=class_names.TINY_IMAGENET,
        size=64,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2302, 0.2265, 0.2262),
        flip=True,
        resize=True,
        splits=("train", "valid"),
    ),
)
