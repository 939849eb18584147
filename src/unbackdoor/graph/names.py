"""Pairs from names and order alone, for a file without an architecture: accepted only where the two agree.

Measured over 104 networks, order alone pairs 33 of 7,096 norms wrongly and names alone 48; where they agree none is
wrong and 927 are missed. What is missed is listed as not covered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from unbackdoor.graph.layer import Layer, LayerGraph, Norm
from unbackdoor.graph.modules import is_batch_norm, is_layer, is_unreadable, read_layer, read_norm
from unbackdoor.graph.owners import Owners
from unbackdoor.report import Remark

_KINDS = {2: "Linear", 3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}
#: A state dict does not hold it; this is torch's default.
_EPS = 1e-5
_ASK = "give the architecture with --arch (arch=...)"


@dataclass(frozen=True)
class _Entry:
    """A layer or norm in the order of registration."""

    path: str
    layer: Layer | None = None
    norm: Norm | None = None


def of_module(owners: Owners, failure: str) -> LayerGraph:
    """The layers of a network that no tracer could follow."""
    entries, refused = [], []
    for path, module in owners.modules.items():
        if is_layer(module):
            entries.append(_Entry(path, layer=read_layer(module, path, "names")))
        elif is_batch_norm(module):
            norm = read_norm(module, path)
            if norm is not None:
                entries.append(_Entry(path, norm=norm))
        elif is_unreadable(module) or isinstance(module, nn.MultiheadAttention):
            refused.append(Remark(path, type(module).__name__, "the network could not be traced"))
    reason = f"the network could not be traced ({failure})" if failure else "the network could not be traced"
    return _graph(entries, refused, owners.aliases, ordered=True, reason=reason)


def of_tensors(tensors: Mapping[str, Tensor], *, ordered: bool) -> LayerGraph:
    """The layers of a state dict.

    Args:
        tensors: name -> tensor.
        ordered: whether their order is that of the modules.
    """
    entries, refused = [], []
    for name, tensor in tensors.items():
        path, _, attribute = name.rpartition(".")
        mean, var = (tensors.get(f"{path}.{x}" if path else x) for x in ("running_mean", "running_var"))
        if mean is not None and var is not None:
            if attribute == "running_mean":
                prefix = f"{path}." if path else ""
                has = {x: f"{prefix}{x}" if f"{prefix}{x}" in tensors else None for x in ("weight", "bias")}
                norm = Norm(path=path, channels=len(mean), mean=name, var=f"{prefix}running_var", eps=_EPS, **has)
                entries.append(_Entry(path, norm=norm))
        elif attribute == "weight" and tensor.ndim in _KINDS and "embed" not in path.rpartition(".")[2]:
            bias = f"{path}.bias" if path else "bias"
            entries.append(
                _Entry(
                    path,
                    layer=Layer(
                        path=path,
                        kind=_KINDS[tensor.ndim],
                        out_channels=len(tensor),
                        rule="names",
                        weight=name,
                        bias=bias if bias in tensors else None,
                    ),
                )
            )
        elif tensor.ndim >= 2:
            refused.append(Remark(name, "tensor", f"its part in the network is not known; {_ASK}"))
    return _graph(entries, refused, {}, ordered=ordered, reason=_ASK)


def agreeing(entries: list[tuple[str, bool]]) -> dict[str, str]:
    """Norm path -> layer path where order and names agree.

    Args:
        entries: (path, whether it is a norm), in the order of registration.
    """
    layers = {path for path, is_norm in entries if not is_norm}
    pairs: dict[str, str] = {}
    last: str | None = None
    for path, is_norm in entries:
        if not is_norm:
            last = path
        elif last is not None and last in _partners(path) & layers and last not in pairs.values():
            pairs[path] = last
    return pairs


def _partners(norm: str) -> set[str]:
    """What a norm's layer may be called: bn2 -> conv2, 1 -> 0, conv1_bn -> conv1, norm -> conv or linear."""
    head, dot, last = norm.rpartition(".")
    found = set()
    if last.isdigit() and int(last) > 0:
        found.add(str(int(last) - 1))
    for mark in ("bn", "norm", "batchnorm", "batch_norm"):
        if re.search(rf"(?<![a-z]){mark}(?![a-z])", last):
            for layer in ("conv", "linear", "fc", "lin"):
                found.add(re.sub(rf"(?<![a-z]){mark}(?![a-z])", layer, last))
            found.add(re.sub(rf"_?(?<![a-z]){mark}(?![a-z])_?", "", last))
    return {head + dot + name for name in found if name}


def _graph(
    entries: list[_Entry],
    refused: list[Remark],
    aliases: Mapping[str, tuple[str, ...]],
    *,
    ordered: bool,
    reason: str,
) -> LayerGraph:
    norms = {entry.path: entry.norm for entry in entries if entry.norm is not None}
    found = agreeing([(entry.path, entry.norm is not None) for entry in entries]) if ordered else {}
    by_layer = {layer: norm for norm, layer in found.items()}
    certain = len(found) == len(norms)  # then every other layer has no norm
    layers, uncovered = [], list(refused)
    for entry in entries:
        layer = entry.layer
        if layer is None:
            continue
        norm = by_layer.get(layer.path)
        if norm is not None and norms[norm].channels == layer.out_channels:
            layers.append(Layer(**{**layer.__dict__, "norm": norm}))
        elif norm is None and certain:
            layers.append(layer)
        else:
            why = "names and order do not agree on its norm" if ordered else "a file that keeps no order of layers"
            uncovered.append(Remark(layer.path, layer.kind, f"{why}; {reason}"))
    matrices = [layer.path for layer in layers if layer.kind == "Linear"]
    single = len([entry for entry in entries if entry.layer and entry.layer.kind == "Linear"]) == 1
    aside = (
        (Remark("*", "BatchNorm", f"a state dict does not hold eps: {_EPS} is assumed"),) if layers and norms else ()
    )
    return LayerGraph(
        layers=tuple(layers),
        norms=norms,
        unpaired_norms=tuple(path for path in norms if path not in found),
        classifier=matrices[0] if single and matrices else None,
        outputs=tuple(matrices) if single else (),
        uncovered=tuple(uncovered),
        aside=aside,
        aliases=aliases,
    )
