"""What is known about each data set: the one place for classes, sizes, means and standard deviations."""

from __future__ import annotations

from dataclasses import dataclass

from unbackdoor.registry import Registry


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A data set's constants.

    Attributes:
        name: what a user types.
        title: what a reader sees.
        classes: the classes' names, in label order.
        size: height and width in pixels.
        mean, std: per channel, of images in [0, 1]; what networks trained here expect as normalisation.
        flip: whether a horizontal mirror image keeps its label (not so for traffic signs).
        columns: names that the image column and the label column may have in the hub's parquet layout.
        splits: what the layout calls the training part and the test part.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    columns: tuple[str, ...] = ("image", "img")
    splits: tuple[str, str] = ("train", "test")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)


DATASETS: Registry[DatasetSpec] = Registry("data set")

CIFAR10 = DATASETS.add(
    "cifar10",
    DatasetSpec(
        name="cifar10",
        title="CIFAR-10",
        classes=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
        size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.243, 0.261),
        flip=True,
    ),
)
