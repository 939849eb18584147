"""The images that a defender has, and how a network is shown them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor import outputs
from unbackdoor.data import DatasetSpec, normalise
from unbackdoor.data.augment import Augmentation, augment
from unbackdoor.defender.case import Case, Needs
from unbackdoor.errors import ArchitectureError, MethodError, SettingError, first_line
from unbackdoor.findings import DataReport
from unbackdoor.graph.activations import watched
from unbackdoor.precision import layout
from unbackdoor.train.fit import batch_sizes, vary

Batch = tuple[Tensor, Tensor]

#: Images as they are.
PLAIN = Augmentation(padding=0)


@dataclass(frozen=True)
class DefenderData:
    """Images with labels, on the network's device.

    Attributes:
        images: (N, C, H, W) uint8 with a `spec`; without one (N, ...) floating point, as the network takes them.
        labels: (N,) int64.
        spec: normalisation, and whether mirror images are allowed.
        dtype: of what the network takes.
        layout: of images that it takes (`precision.layout`).
    """

    images: Tensor
    labels: Tensor
    spec: DatasetSpec | None
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.channels_last

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> DefenderData:
        return dataclasses.replace(self, images=self.images[index], labels=self.labels[index])

    @property
    def digest(self) -> str:
        """SHA-256 of images and labels."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def scale(self) -> Tensor:
        """By how much a network's input changes where a pixel changes from 0 to 1: (1, C, 1, 1), or a 1."""
        if self.spec is None:
            return torch.ones((), dtype=self.dtype, device=self.images.device)
        return 1 / torch.tensor(self.spec.std, dtype=self.dtype, device=self.images.device).view(1, -1, 1, 1)

    @property
    def floor(self) -> Tensor:
        """What a network's input is where a pixel is 0: (1, C, 1, 1), or a 0."""
        if self.spec is None:
            return torch.zeros((), dtype=self.dtype, device=self.images.device)
        mean = torch.tensor(self.spec.mean, dtype=self.dtype, device=self.images.device).view(1, -1, 1, 1)
        return -mean * self.scale

    def inputs(self, images: Tensor | None = None) -> Tensor:
        """What the network takes, of some of the images or of all."""
        images = self.images if images is None else images
        return self._shown(images if self.spec is None else normalise(images, self.spec))

    def augmented(self, images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
        """The same, each image varied at random: mirrored where the data set allows it, and cropped."""
        if how is PLAIN:
            return self.inputs(images)
        if self.spec is not None:
            return self._shown(vary(images, how, self.spec, generator))
        if images.ndim != 4:
            return self.inputs(images)
        return self._shown(augment(images, padding=how.padding, flip=False, generator=generator))

    def _shown(self, x: Tensor) -> Tensor:
        """In the network's dtype and layout."""
        x = x.to(self.dtype)
        return x.contiguous(memory_format=self.layout) if x.ndim == 4 else x

    def epoch(
        self, batch_size: int, generator: torch.Generator, how: Augmentation = PLAIN, *, most: int | None = None
    ) -> Iterator[Batch]:
        """All images (or `most` of them) once in random order; (B, ...) float32 inputs and (B,) labels."""
        order = torch.randperm(len(self), generator=generator)[:most].to(self.labels.device)
        for batch in torch.split(order, batch_sizes(len(order), batch_size)):
            yield self.augmented(self.images[batch], how, generator), self.labels[batch]

    def draw(self, batch_size: int, generator: torch.Generator, how: Augmentation = PLAIN) -> Batch:
        """One batch, drawn with replacement."""
        batch = torch.randint(len(self), (batch_size,), generator=generator).to(self.labels.device)
        return self.augmented(self.images[batch], how, generator), self.labels[batch]

    def chunks(self, size: int = 500) -> Iterator[Batch]:
        """All images in order, as they are."""
        for images, labels in zip(torch.split(self.images, size), torch.split(self.labels, size), strict=True):
            yield self.inputs(images), labels

    def held_out(self, share: float, generator: torch.Generator) -> tuple[DefenderData, DefenderData]:
        """Two parts drawn at random: the second holds `share` of the images, but at least one."""
        count = max(1, round(share * len(self)))
        if count >= len(self):
            raise MethodError(f"{len(self)} images are too few to hold out {share:g} of them; give more, or holdout 0")
        order = torch.randperm(len(self), generator=generator).to(self.labels.device)
        return self[order[count:]], self[order[:count]]


def images_of(case: Case, model: nn.Module, name: str, *, needs: Needs = "clean images") -> DefenderData:
    """A case's images, checked against each other and against the network.

    Args:
        case: the case.
        model: its working copy.
        name: of the method, for messages.
        needs: what the method asks for.

    Raises:
        SettingError: there are none, or they are of a wrong type, shape or range.
        MethodError: the network does not answer such images with one logit a class.
    """
    if case.images is None and case.labels is None:
        raise SettingError(f"{name} needs {needs}: give images and labels beside the network")
    return defender_data(case.images, case.labels, case.spec, model, name)


def data_report(data: DefenderData) -> DataReport:
    """What a report says of the images."""
    return DataReport(images=len(data), digest=data.digest, name=None if data.spec is None else data.spec.name)


@torch.no_grad()
def classes_of(model: nn.Module, data: DefenderData) -> int:
    """How many classes a network in eval mode answers."""
    return int(logits_of(model(data.inputs(data.images[:1]))).shape[1])


def defender_data(images: object, labels: object, spec: object, model: nn.Module, name: str) -> DefenderData:
    """Check images and labels against each other and against the network.

    Args:
        model: the network, in eval mode.
        name: of the method, for messages.

    Raises:
        SettingError: they are of a wrong type, shape or range.
        MethodError: the network does not answer such images with one logit a class.
    """
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise SettingError(
            f"{name}: expected images and labels as tensors, got {type(images).__name__} and {type(labels).__name__}"
        )
    if spec is not None and not isinstance(spec, DatasetSpec):
        raise SettingError(f"{name}: spec: expected a data set's spec (data.DATASETS[...]), got {spec!r:.60}")
    if spec is not None and (images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != spec.channels):
        raise SettingError(
            f"{name}: images: expected uint8 of shape (N, {spec.channels}, H, W) beside the spec of {spec.title}, got "
            f"{_described(images)}; without spec=, give them as the network takes them"
        )
    if spec is None and (not images.is_floating_point() or images.ndim < 2):
        raise SettingError(
            f"{name}: images: expected floating-point numbers as the network takes them, (N, ...), got "
            f"{_described(images)}; uint8 images need spec=, the data set whose normalisation the network expects"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise SettingError(f"{name}: labels: expected int64 of shape ({len(images)},), got {_described(labels)}")
    if not len(labels):
        raise SettingError(f"{name}: expected at least one image, got none")
    if images.is_floating_point() and not bool(torch.isfinite(images).all()):
        raise SettingError(f"{name}: images: expected finite numbers, got NaN or infinity")
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    # Copies, so that neither gradients nor an inference mode of the caller's reach in here.
    copies = (x.detach().to(weight.device).clone(memory_format=torch.contiguous_format) for x in (images, labels))
    data = DefenderData(next(copies), next(copies), spec, weight.dtype, layout(model))
    try:
        with torch.no_grad():
            logits = outputs.logits_of(model(data.inputs(data.images[:2])))
    except ArchitectureError as error:
        raise MethodError(f"{name}: {error}") from error
    except Exception as error:
        raise MethodError(
            f"{name}: the network fails on images of shape {tuple(images.shape[1:])}: {first_line(error)}"
        ) from error
    if len(logits) != min(2, len(labels)):
        raise MethodError(f"{name}: expected (N, classes) logits, got {tuple(logits.shape)} for {min(2, len(labels))}")
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < logits.shape[1]:
        raise SettingError(
            f"{name}: labels: expected 0 to {logits.shape[1] - 1}, the network's classes, got {low} to {high}"
        )
    return data


def logits_of(result: object) -> Tensor:
    """A network's logits, where in training it answers more than them (torchvision's GoogLeNet): the first.

    Raises:
        MethodError: there are none.
    """
    try:
        return outputs.logits_of(result[0] if isinstance(result, tuple | list) and result else result)
    except ArchitectureError as error:
        raise MethodError(str(error)) from error


@torch.no_grad()
def inputs_of(model: nn.Module, path: str, data: DefenderData, name: str) -> Tensor:
    """What a module is given for each image, (N, F, ...).

    Args:
        model: in eval mode.
        path: of the module.
        data: the images.
        name: of the method, for the message.

    Raises:
        MethodError: it is not called once an image.
    """
    found: list[Tensor] = []

    def see(_path: str, _call: int, value: object) -> None:
        assert isinstance(value, Tensor)
        found.append(value)

    with watched(model, (path,), see, side="input"):
        for x, _ in data.chunks():
            model(x)
    features = torch.cat(found)
    if len(features) != len(data):
        raise MethodError(f"{name}: {path} got {len(features)} inputs for {len(data)} images")
    return features


@torch.no_grad()
def accuracy_on(model: nn.Module, data: DefenderData) -> float:
    """The share of images that a network in eval mode answers rightly."""
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.chunks())
    return hits / len(data)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
