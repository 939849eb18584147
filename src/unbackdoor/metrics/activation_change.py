"""Trigger-activated change (TAC) of each channel, and its correlation with the Lipschitz constant (Figure 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.channel_scores import channel_lipschitz
from unbackdoor.graph import layer_graph
from unbackdoor.graph.activations import watched


@torch.no_grad()
def activation_change(model: nn.Module, clean: Tensor, triggered: Tensor, paths: list[str]) -> dict[str, Tensor]:
    """Layer path -> (N, C): mean over H and W of |F_j(x') - F_j(x)|, for each image.

    Args:
        model: in eval mode.
        clean, triggered: (N, 3, H, W) network inputs, without and with the trigger.
        paths: modules whose outputs (N, C, ...) are compared: a layer's norm where it has one, else the layer.
    """
    before, after = (_outputs(model, x, paths) for x in (clean, triggered))
    return {path: (after[path] - before[path]).abs().flatten(2).mean(2) for path in paths if path in before}


def _outputs(model: nn.Module, x: Tensor, paths: list[str]) -> dict[str, Tensor]:
    """The outputs of some modules, by path."""
    seen: dict[str, Tensor] = {}

    def see(path: str, _call: int, value: object) -> None:
        assert isinstance(value, Tensor)
        seen[path] = value

    with watched(model, paths, see, side="output"):
        model(x)
    return seen


def correlations(model: nn.Module, clean: Tensor, triggered: Tensor) -> dict[str, Any]:
    """Pearson's and Spearman's coefficients between TAC and the Lipschitz constants, over each layer's channels.

    Two readings of the figure: one coefficient an image and layer, and one a layer with TAC averaged over the images.

    Args:
        model: a backdoored network.
        clean, triggered: (N, 3, H, W) network inputs whose class is not the target, without and with the trigger.

    Returns:
        {"layers": [...], "images": N, "pearson": {"per_image": [[...] per layer], "per_layer": [...]}, "spearman": the
        same}; a coefficient that is not defined is None.
    """
    model = model.float().eval()
    graph = layer_graph(model)
    scores = channel_lipschitz(model, graph=graph)
    layers = [layer for layer in graph.layers if layer.path in scores and layer.path not in graph.outputs]
    layers = [layer for layer in layers if scores[layer.path].ndim == 1 and layer.kind.startswith("Conv")]
    places = {layer.path: layer.norm or layer.path for layer in layers}
    change = activation_change(model, clean, triggered, list(places.values()))
    result: dict[str, Any] = {"layers": [layer.path for layer in layers], "images": len(clean)}
    for name, rank in (("pearson", False), ("spearman", True)):
        per_image, per_layer = [], []
        for layer in layers:
            tac, lc = change[places[layer.path]].double().cpu(), scores[layer.path].double().cpu()
            if rank:
                lc = ranks(lc[None])[0]
            per_image.append([coefficient(lc, ranks(one[None])[0] if rank else one) for one in tac])
            mean = tac.mean(0)
            per_layer.append(coefficient(lc, ranks(mean[None])[0] if rank else mean))
        result[name] = {"per_image": per_image, "per_layer": per_layer}
    return result


def coefficient(a: Tensor, b: Tensor) -> float | None:
    """Pearson's coefficient of (C,) and (C,); None if one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    length = float(a.norm() * b.norm())
    return float(a @ b) / length if length > 0 else None


def ranks(values: Tensor) -> Tensor:
    """(N, C) -> (N, C): each value's rank in its row, ties get the mean of their ranks."""
    below = (values[:, None, :] < values[:, :, None]).sum(2)
    equal = (values[:, None, :] == values[:, :, None]).sum(2)
    return below.double() + (equal.double() - 1) / 2
