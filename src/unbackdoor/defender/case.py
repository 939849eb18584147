"""What a method is given: a network, and whatever it may know beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from unbackdoor.defender.working_copy import seeded, working_copy
from unbackdoor.errors import SettingError
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph import layer_graph
from unbackdoor.graph.tensors import Tensors, read_model
from unbackdoor.inputs import Normalisation
from unbackdoor.outputs import answering

#: What a method asks for beside the network: no images; clean ones; or the training set, poisoned images and all.
Needs = Literal["nothing", "clean images", "training images"]

#: Called with (steps done, steps in all, what to say beside it).
Progress = Callable[[int, int, str], None]


def silent(_done: int, _total: int, _note: str) -> None:
    """Shows no progress."""


def part(progress: Progress, start: float, end: float) -> Progress:
    """The progress of a part of the work, which goes from one share of it to another."""

    def told(done: int, total: int, note: str) -> None:
        progress(round(1000 * (start + (end - start) * done / max(1, total))), 1000, note)

    return told


class Beside(TypedDict, total=False):
    """What a call may name beside the network, the images and the labels; the fields of a `Case`."""

    graph: LayerGraph | None
    example: Any
    spec: object
    normalisation: Normalisation | None
    generator: torch.Generator | None
    output: str | None
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network to repair or to look at. It is never changed: a method works on a copy, or answers a plan.

    Attributes:
        network: a network that answers (N, classes) logits, or a dict, tuple or dataclass that holds them. Or, for
            methods that read weights alone, its tensors by name (then `graph` is needed).
        graph: its layer graph, if it has been read already.
        example: what the network takes, where its layers cannot be read without (see `layer_graph`; not so beside a
            `graph`), or where a method makes images and must know their size.
        images: (N, C, H, W) uint8 beside a `spec`; else (N, ...) floating point, as the network takes them. None where
            there are none.
        labels: (N,) int64.
        spec: the data set whose normalisation the network expects.
        normalisation: of the images that the network takes, where a method makes some and it is known (see
            `defender.input_spec`); of images that are given, `spec` decides.
        generator: of everything that is drawn, on the CPU: the same one gives the same result.
        output: which part of what the network returns is its logits: a key, a number or a field's name.
        progress: called with (done, total, a note).
    """

    network: nn.Module | Mapping[str, Tensor]
    graph: LayerGraph | None = None
    example: Any = None
    images: Tensor | None = None
    labels: Tensor | None = None
    spec: object = None  # checked, with images and labels, by defender.images: what reads weights alone knows no data
    normalisation: Normalisation | None = None
    generator: torch.Generator | None = None
    output: str | None = None
    progress: Progress = silent

    @property
    def module(self) -> nn.Module:
        """The network, where a method must run it.

        Raises:
            SettingError: there are only tensors.
        """
        if not isinstance(self.network, nn.Module):
            raise SettingError("tensors without a network: this method runs it; give the network, or --arch for a file")
        return self.network

    @property
    def rng(self) -> torch.Generator:
        """The generator.

        Raises:
            SettingError: there is none.
        """
        if self.generator is None:
            raise SettingError("generator: expected a torch.Generator on the CPU, got None")
        return self.generator

    def layers(self) -> LayerGraph:
        """The layer graph: as it was given, or read now.

        Raises:
            GraphError: the network could not be read at all.
        """
        return self.graph or layer_graph(self.module, self.example)

    def tensors(self) -> tuple[Tensors, LayerGraph]:
        """The network's tensors, and the layer graph, which is checked against them.

        Raises:
            GraphError: the network could not be read at all.
            SettingError: tensors came without a graph, or the graph is another network's.
        """
        return read_model(self.network, self.graph, self.example)

    @contextlib.contextmanager
    def working(self, method: str) -> Iterator[nn.Module]:
        """A copy in float32 (or float64) and eval mode, all of whose weights can be trained, and which answers logits.
        Within, gradients are on, and everything is drawn from the generator.

        Args:
            method: its name, for messages.

        Raises:
            SettingError: there is no generator.
            MethodError: the network is of a kind that cannot be trained or masked.
        """
        with seeded(self.generator, method), answering(model := working_copy(self.module, method), self.output):
            yield model
