"""The adaptive attacker: a penalty that keeps folded channel norms flat within each layer.

LPP and CLP presume that backdoor channels stand out of their layer. Whoever trains the network can add

    flat_norms * mean over layers of Var_j(LC_j) / mean_j(LC_j)^2

to the loss, LC_j being the channel's folded norm (`unbackdoor.lipschitz`) with the running variance held fixed, and so
trade a little accuracy for channels that do not. It shows the limits of such defences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unbackdoor.errors import SettingError
from unbackdoor.findings.layers import LayerGraph


class Flatness:
    """The penalty for one network.

    Args:
        model: the network; its parameters are looked up by name once.
        graph: its layers; those with a norm of their own count.
        weight: of the penalty.

    Raises:
        SettingError: no layer has a norm whose weight can be read.
    """

    def __init__(self, model: nn.Module, graph: LayerGraph, *, weight: float = 1.0) -> None:
        self.weight = weight
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._layers = []
        for layer in graph.layers:
            norm = graph.norms[layer.norm] if layer.norm is not None else None
            readable = layer.parametrization is None and not layer.transposed
            if norm is not None and norm.weight is not None and readable:
                parts = (tensors[layer.weight], tensors[norm.weight], tensors[norm.var])
                self._layers.append((*parts, norm.eps))
        if not self._layers:
            raise SettingError("flat_norms: expected a network with a BatchNorm after a layer, found none")

    def __repr__(self) -> str:
        return f"Flatness(weight={self.weight})"

    def __call__(self) -> Tensor:
        """A scalar with gradients; 0 where all norms are equal."""
        spreads = []
        for weight, gamma, var, eps in self._layers:
            scores = weight.float().flatten(1).norm(dim=1) * gamma.float().abs() / (var.detach() + eps).sqrt()
            spreads.append(scores.var(correction=0) / scores.mean().square().clamp_min(1e-12))
        return self.weight * torch.stack(spreads).mean()
