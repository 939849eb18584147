"""Labelled images as two tensors, and how a network wants to see them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from unbackdoor.data.specs import DatasetSpec
from unbackdoor.errors import DataError


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels, as stored.

    Attributes:
        images: (N, C, H, W) uint8, 0 to 255; C is what `spec` says, 3 or 1.
        labels: (N,) int64.
        spec: the data set they come from.
        resized: how many images of the whole split had another size on disk and were resized when they were read.
    """

    images: Tensor
    labels: Tensor
    spec: DatasetSpec
    resized: int = 0

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != self.spec.channels:
            raise DataError(
                f"{self.spec.title}: expected uint8 images of shape (N, {self.spec.channels}, H, W), got "
                f"{self.images.dtype} {tuple(self.images.shape)}"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"{self.spec.title}: {len(self.images)} images but labels of shape {tuple(self.labels.shape)}"
            )
        check_labels(self.labels, self.spec)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> LabelledImages:
        return dataclasses.replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: str | torch.device) -> LabelledImages:
        """The same on `device`."""
        return dataclasses.replace(self, images=self.images.to(device), labels=self.labels.to(device))


def check_labels(labels: Tensor, spec: DatasetSpec) -> None:
    """DataError unless all of the (N,) int64 labels are classes of the data set."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < spec.num_classes:
        raise DataError(
            f"{spec.title}: expected labels 0 to {spec.num_classes - 1}, got {int(labels.min())} to {int(labels.max())}"
        )


def normalise(images: Tensor, spec: DatasetSpec) -> Tensor:
    """(N, C, H, W), 0 to 255 -> float32, divided by 255, the data set's mean subtracted, divided by its std."""
    mean = torch.tensor(spec.mean, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(spec.std, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
    return (images.float() / 255 - mean) / std
