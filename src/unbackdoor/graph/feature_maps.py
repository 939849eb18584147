"""A network's feature maps, wherever in it they come from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unbackdoor.graph.activations import watched

#: Their results are summaries of maps, or weights, not maps.
_POOLS = (
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.LPPool2d),
    *(nn.FractionalMaxPool2d, nn.Upsample, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Softmax),
)


@dataclass(frozen=True)
class Place:
    """Where a feature map appears: the `call`-th result of a module in one forward pass."""

    path: str
    call: int
    size: tuple[int, int]


@dataclass
class Maps:
    """What a forward pass left: one (N, C, H, W) tensor a place."""

    tensors: list[Tensor] = field(default_factory=list)


def last_maps(model: nn.Module, example: Tensor, *, count: int, stages: bool = False) -> tuple[Place, ...]:
    """The last feature map of each of the last `count` resolutions, in the order of the network.

    A map is a module's result of shape (N, C, H, W) with H / W as in the example, and more than one pixel, that is no
    pooling's. Where blocks are nested, the outermost one ends last.

    Args:
        model: in eval mode.
        example: (N, C, H, W), a few images.
        stages: only results of the modules that the network itself holds, not of those inside them.
    """
    found: list[Place] = []
    height, width = example.shape[-2:] if example.ndim == 4 else (0, 0)
    modules = dict(model.named_children() if stages else model.named_modules())

    def see(path: str, call: int, result: object) -> None:
        if not isinstance(result, Tensor) or isinstance(modules[path], _POOLS):
            return
        if result.ndim == 4 and len(result) == len(example):
            h, w = result.shape[-2:]
            if h * w > 1 and h * width == w * height and h <= height:
                found.append(Place(path, call, (h, w)))

    with torch.no_grad(), watched(model, modules, see, side="output"):
        model(example)
    last = {place.size: place for place in found}  # the later entry wins
    order = [place for place in found if last[place.size] is place]
    return tuple(order[-count:])


@contextlib.contextmanager
def recorded(model: nn.Module, places: tuple[Place, ...]) -> Iterator[Maps]:
    """Within, the maps of the latest forward pass are kept, with their gradients."""
    maps = Maps()
    wanted = {(place.path, place.call): index for index, place in enumerate(places)}
    kept: dict[int, Tensor] = {}

    def see(path: str, call: int, result: object) -> None:
        if (path, call) in wanted:
            assert isinstance(result, Tensor)
            kept[wanted[path, call]] = result
        if len(kept) == len(places):
            maps.tensors = [kept[index] for index in range(len(places))]
            kept.clear()

    with watched(model, (place.path for place in places), see, side="output"):
        yield maps
