"""What a network answers if one of its channels fires everywhere.

A backdoor needs channels that carry its trigger to the attacker's class. Make one channel fire over its whole map, on
images of all classes, and look where the answers go: a channel that moves most of them to one class pushes it.

    level    beta + 3 |gamma| behind a BatchNorm: three running deviations above the mean, where a channel that fires on
             a tenth of the training images peaks; elsewhere the same of what the channel does on the images
    flip     share of the images that were not answered c before, and are with the channel at its level or above
    change   mean change of the log-probability of c
    push(t)  sum over the channels of flip(channel, t)^2; early layers hold colours and edges, which speak for honest
             classes too, so the first third of the layers is left out
    score(t) log(push(t) + FLOOR), in robust deviations above the median of the classes
    lead(t)  log2 of (push(t) + ONE) / (the largest push to another class + ONE)

Honest networks push some classes more than others, so the spread of the classes is wide; but they seldom push one class
much more than the next. Where no channel pushes at all, the next to nothing of one class is many times that of another:
hence ONE.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.defender.deviations import LEAST, deviations
from unbackdoor.defender.on_pixels import CHUNK, OnPixels, folded, going_on
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph.activations import watched
from unbackdoor.graph.modules import effective_weight

#: Deviations above the mean.
LEVEL = 3.0
#: What a class is pushed by chance: a channel that moves every fifth answer.
FLOOR = 0.04
#: A channel that moves every answer.
ONE = 1.0


@dataclass(frozen=True)
class Pushes:
    """What the channels of one layer do to the answers.

    Attributes:
        path: the module whose result was changed: the layer's norm, or the layer.
        layer: path of the layer.
        flips: (channels, classes) in [0, 1].
        change: (channels, classes) mean change of the log-probability.
    """

    path: str
    layer: str
    flips: Tensor
    change: Tensor


@dataclass(frozen=True)
class Place:
    """Where a layer's channels can be changed.

    Attributes:
        path: the module whose result is changed: the layer's norm, or the layer.
        layer: path of the layer.
        channels: how many.
        axis: theirs.
    """

    path: str
    layer: str
    channels: int
    axis: int

    @torch.no_grad()
    def off(self, model: nn.Module) -> Tensor:
        """(channels,) bool: which were pruned: gamma and beta of the norm are zero, or the filter and its bias."""
        module = model.get_submodule(self.path)
        weight: Any = getattr(module, "weight", None)
        if self.path == self.layer or not isinstance(weight, Tensor):
            module = model.get_submodule(self.layer)
            if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                return torch.zeros(self.channels, dtype=torch.bool)
            weight = effective_weight(module)
            if isinstance(module, nn.modules.conv._ConvTransposeNd):  # (C_in, C_out / groups, ...)
                weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
        bias: Any = getattr(module, "bias", None)
        off: Tensor = ~weight.reshape(self.channels, -1).any(1)
        return (off if bias is None else off & (bias == 0)).cpu()


@dataclass(frozen=True)
class Firing:
    """A channel that can be made to fire.

    Attributes:
        place: where.
        channel: its number.
        level: the least that it is while it fires.
    """

    place: Place
    channel: int
    level: float

    @property
    def layer(self) -> str:
        """Path of its layer."""
        return self.place.layer

    @contextlib.contextmanager
    def only_from(self, model: nn.Module, start: int) -> Iterator[None]:
        """Within, it fires on the images of a batch from number `start` on; gradients go through.

        A channel that was pruned does not fire.
        """
        if bool(self.place.off(model)[self.channel]):
            yield
            return

        def raised(result: Tensor) -> Tensor:
            parts = result.movedim(self.place.axis, 1)
            fires = torch.zeros(parts.shape[:2], dtype=torch.bool, device=parts.device)
            fires[start:, self.channel] = True
            fires = fires.view(*fires.shape, *(1 for _ in parts.shape[2:]))
            return torch.where(fires, parts.clamp(min=self.level), parts).movedim(1, self.place.axis)

        with changed(model, self.place.path, raised):
            yield


def stimulate(
    shown: OnPixels,
    graph: LayerGraph,
    pixels: Tensor,
    *,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Pushes]:
    """Each channel behind the first third of the hidden layers in turn, in the order of the layers.

    Layers that are not a module called once in a forward pass are left out.

    Args:
        shown: the network.
        graph: its layers.
        pixels: (N, C, H, W) in [0, 1], images of all classes.
        progress: called with (channels done, channels in all).
    """
    places = counted(places_of(shown, graph, pixels[:2]))
    levels = _levels(shown, places, pixels)
    shown = folded(shown, graph)
    before = shown.logits(pixels)
    total, done, found = sum(place.channels for place in places), 0, []
    for place in places:
        flips, changes = [], []
        asked = place.channels * len(pixels)
        with torch.no_grad(), going_on(shown, [place.path], pixels, asked=asked) as answer:
            for channels in torch.split(torch.arange(place.channels), max(1, CHUNK // len(pixels))):
                after = _stimulated(shown.model, place, channels, levels[place.path], len(pixels), answer)
                flips.append(_flips(before, after))
                changes.append((after.log_softmax(2) - before.log_softmax(1)).mean(1))
                done += len(channels)
                progress(done, total)
        found.append(Pushes(place.path, place.layer, torch.cat(flips), torch.cat(changes)))
    return found


def counted(places: Sequence[Place]) -> Sequence[Place]:
    """Those behind the first third."""
    return places[len(places) // 3 :]


def strongest(
    shown: OnPixels, graph: LayerGraph, pixels: Tensor, pushes: Sequence[Pushes], label: int, *, most: int
) -> list[Firing]:
    """The channels that push a class most, the hardest first.

    Args:
        shown, graph, pixels: as in `stimulate`.
        pushes: what that returned for this network.
        label: the class.
        most: how many.
    """
    places = {place.path: place for place in places_of(shown, graph, pixels[:2])}
    levels = _levels(shown, list(places.values()), pixels)
    ranked = sorted(
        (-float(layer.flips[channel, label]) - 0.01 * float(layer.change[channel, label]), order, channel)
        for order, layer in enumerate(pushes)
        for channel in range(len(layer.flips))
    )
    found = []
    for _, order, channel in ranked[:most]:
        place = places[pushes[order].path]
        found.append(Firing(place, channel, float(levels[place.path][channel])))
    return found


def moved(shown: OnPixels, firings: Sequence[Firing], pixels: Tensor, label: int) -> list[float]:
    """The share of the images not answered with a class that each channel moves to it, firing alone."""
    others = pixels[shown.logits(pixels).argmax(1) != label]
    shares = []
    for firing in firings:
        with firing.only_from(shown.model, 0):
            after = shown.logits(others) if len(others) else torch.empty(0, 1)
        shares.append(float((after.argmax(1) == label).double().mean()) if len(others) else 0.0)
    return shares


def push(pushes: Sequence[Pushes]) -> Tensor:
    """(classes,) the sum of squared flips of all channels."""
    return torch.stack([layer.flips.square().sum(0) for layer in pushes]).sum(0)


def push_scores(pushes: Sequence[Pushes]) -> list[float]:
    """How far each class's push lies above the others'."""
    return deviations([math.log(float(value) + FLOOR) for value in push(pushes)], least=LEAST, middle="lower")


def push_leads(pushes: Sequence[Pushes]) -> list[float]:
    """By how many factors of two each class's push lies above the largest of the others."""
    logs = [math.log2(float(value) + ONE) for value in push(pushes)]
    first, second = sorted(range(len(logs)), key=lambda label: -logs[label])[:2]
    return [value - logs[second if label == first else first] for label, value in enumerate(logs)]


def _flips(before: Tensor, after: Tensor) -> Tensor:
    """(N, classes) and (channels, N, classes) logits -> (channels, classes) shares."""
    classes = before.shape[1]
    was = before.argmax(1)
    now = torch.nn.functional.one_hot(after.argmax(2), classes).float()
    other = torch.nn.functional.one_hot(was, classes) == 0  # (N, classes): not answered before
    return (now * other).sum(1) / other.sum(0).clamp_min(1)


def _stimulated(
    model: nn.Module, place: Place, channels: Tensor, level: Tensor, count: int, answer: Callable[[Tensor], Tensor]
) -> Tensor:
    """(channels, N, classes) logits of `count` images with each of the channels at its level or above."""

    def raised(result: Tensor) -> Tensor:
        parts = result.movedim(place.axis, 1).clone()
        for index, channel in enumerate(channels.tolist()):
            parts[index * count : (index + 1) * count, channel].clamp_(min=float(level[channel]))
        return parts.movedim(1, place.axis)

    with changed(model, place.path, raised):
        logits = answer(torch.arange(count).repeat(len(channels)))
    return logits.cpu().view(len(channels), count, -1)


@contextlib.contextmanager
def changed(model: nn.Module, path: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, what a module of a network returns is replaced by `change` of it."""
    handle = model.get_submodule(path).register_forward_hook(lambda _module, _inputs, result: change(result))
    try:
        yield
    finally:
        handle.remove()


def places_of(shown: OnPixels, graph: LayerGraph, pixels: Tensor) -> list[Place]:
    """Where each hidden layer's channels can be changed: behind its norm if it has one.

    Layers that are not a module called once in a forward pass are left out.

    Args:
        shown, graph: as in `stimulate`.
        pixels: (N, C, H, W) in [0, 1].
    """
    modules = dict(shown.model.named_modules())
    wanted = {}
    for layer in graph.layers:
        path = layer.path if layer.norm is None else graph.norms[layer.norm].path
        if layer.part == "hidden" and path in modules:
            wanted[path] = layer
    shapes: dict[str, tuple[int, ...]] = {}
    calls: dict[str, int] = {}

    def see(path: str, call: int, result: object) -> None:
        calls[path] = call + 1
        if isinstance(result, Tensor):
            shapes[path] = tuple(result.shape)

    with watched(shown.model, wanted, see, side="output"):
        shown.logits(pixels)
    places = []
    for path, layer in wanted.items():
        shape = shapes.get(path, ())
        axis = len(shape) - 1 if layer.kind == "Linear" else 1
        fits = len(shape) >= 2 and shape[0] == len(pixels) and shape[axis] == layer.out_channels
        if fits and calls[path] == 1:
            places.append(Place(path, layer.path, layer.out_channels, axis))
    return places


def _levels(shown: OnPixels, places: Sequence[Place], pixels: Tensor) -> dict[str, Tensor]:
    """Path -> (channels,) the level that a channel is raised to."""
    return {path: mean + LEVEL * deviation for path, (mean, deviation) in spreads(shown, places, pixels).items()}


def spreads(shown: OnPixels, places: Sequence[Place], pixels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Path -> (channels,) means and deviations: beta and |gamma| behind a BatchNorm, else on the images."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    measured: dict[str, int] = {}
    for place in places:
        module = shown.model.get_submodule(place.path)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None and module.affine:
            found[place.path] = (module.bias.detach().float().cpu(), module.weight.detach().abs().float().cpu())
        else:
            measured[place.path] = place.axis

    def see(path: str, _call: int, result: object) -> None:
        assert isinstance(result, Tensor)
        flat = result.detach().float().movedim(measured[path], -1).flatten(0, -2)
        found[path] = (flat.mean(0).cpu(), flat.std(0, correction=0).cpu())

    with torch.no_grad(), watched(shown.model, measured, see, side="output"):
        shown(pixels[:CHUNK])
    return found
