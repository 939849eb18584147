"""Labelled images as two tensors, and how a network wants to see them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unbackdoor.data.specs import DatasetSpec
from unbackdoor.errors import DataError


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels, as stored.

    Attributes:
        images: (N, 3, H, W) uint8, 0 to 255.
        labels: (N,) int64.
        spec: the data set they come from.
    """

    images: Tensor
    labels: Tensor
    spec: DatasetSpec

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise DataError(
                f"{self.spec.title}: expected uint8 images of shape (N, 3, H, W), got "
                f"{self.images.dtype} {tuple(self.images.shape)}"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"{self.spec.title}: {len(self.images)} images but labels of shape {tuple(self.labels.shape)}"
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.spec.num_classes:
            raise DataError(
                f"{self.spec.title}: expected labels 0 to {self.spec.num_classes - 1}, got "
                f"{int(self.labels.min())} to {int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> LabelledImages:
        return LabelledImages(self.images[index], self.labels[index], self.spec)

    def to(self, device: str | torch.device) -> LabelledImages:
        """The same on `device`."""
        return LabelledImages(self.images.to(device), self.labels.to(device), self.spec)


def normalise(images: Tensor, spec: DatasetSpec) -> Tensor:
    """(N, 3, H, W) uint8 -> float32, divided by 255, the data set's mean subtracted, divided by its std."""
    mean = torch.tensor(spec.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(spec.std, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std
