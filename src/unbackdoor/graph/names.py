"""Pairs from names and order alone, for a file without an architecture: accepted only where the two agree.

Measured over 163 networks (docs/pairing.md), order alone pairs 65 of 6,692 norms wrongly and names alone 328; where
they agree none is wrong and 1,882 are missed. What is missed is listed as not covered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unbackdoor.graph.layer import Layer, LayerGraph, Norm
from unbackdoor.graph.modules import (
    is_batch_norm,
    is_layer,
    is_unreadable,
    join,
    read_layer,
    read_norm,
    runs_torch_forward,
)
from unbackdoor.graph.owners import Owners
from unbackdoor.report import Remark

_KINDS = {2: "Linear", 3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}
#: A state dict does not hold it; this is torch's default.
_EPS = 1e-5
#: Transposed convolutions keep their output channels in the second place, which a square weight does not betray.
_UPWARDS = re.compile(r"deconv|transpose|convt(?![a-z])|upconv|up_?sample|(?<![a-z])up\d*(?![a-z])", re.IGNORECASE)
_ASK = "give the architecture with --arch (arch=...)"


@dataclass(frozen=True)
class _Entry:
    """A layer or norm in the order of registration; one that is refused takes part in the pairing and no further."""

    path: str
    layer: Layer | None = None
    norm: Norm | None = None
    refusal: str = ""

    @property
    def kind(self) -> str:
        return self.layer.kind if self.layer else "BatchNorm"


def of_module(owners: Owners, failure: str) -> LayerGraph:
    """The layers of a network that no tracer could follow."""
    entries, refused = [], []
    paths: dict[nn.Module, str] = {}
    for path, module in owners.modules.items():
        paths.setdefault(module, path)
    for module, path in paths.items():
        if is_layer(module):
            refusal = "" if runs_torch_forward(module) else "its forward pass is its own and could not be traced"
            entries.append(_Entry(path, layer=read_layer(module, path, "names"), refusal=refusal))
        elif is_batch_norm(module):
            norm = read_norm(module, path)
            if norm is not None and any(x is not None and x not in owners.tensors for x in (norm.weight, norm.bias)):
                entries.append(_Entry(path, refusal="its weight or bias is computed by a parametrization"))
            elif norm is not None:
                entries.append(_Entry(path, norm=norm))
        elif is_unreadable(module) or isinstance(module, nn.MultiheadAttention):
            refused.append(Remark(path, type(module).__name__, "the network could not be traced"))
    known = {entry.path for entry in entries}.union(remark.path for remark in refused)
    for name, tensor in owners.tensors.items():  # of code that was compiled or exported, and of a module's own making
        parts = name.split(".")[:-1]
        inside = any(".".join(parts[:end]) in known for end in range(1, len(parts) + 1))
        kind = type(owners.modules.get(".".join(parts)))
        own = kind is nn.Module or not kind.__module__.startswith("torch.nn.modules.")
        if isinstance(tensor, nn.Parameter) and tensor.ndim >= 2 and own and not inside:
            refused.append(Remark(name, "parameter", "its part in the network is not known: it could not be traced"))
    reason = f"the network could not be traced ({failure})"
    aside = (Remark("*", "network", f"read by names and order alone: {reason}"),)
    return _graph(entries, refused, owners.aliases, ordered=True, reason=reason, aside=aside)


def of_tensors(tensors: Mapping[str, Tensor], *, ordered: bool) -> LayerGraph:
    """The layers of a state dict.

    Args:
        tensors: name -> tensor.
        ordered: whether their order is that of the modules.
    """
    entries, refused = [], []
    for name, tensor in tensors.items():
        path, _, attribute = name.rpartition(".")
        mean, var = (tensors.get(join(path, x)) for x in ("running_mean", "running_var"))
        if mean is not None and var is not None:
            if attribute == "running_mean":
                has: Any = {x: join(path, x) if join(path, x) in tensors else None for x in ("weight", "bias")}
                others = [tensors[x] for x in has.values() if x]
                if mean.ndim != 1 or any(x.shape != mean.shape for x in (var, *others)):
                    entries.append(_Entry(path, refusal="its tensors are not all of one length"))
                    continue
                norm = Norm(path=path, channels=len(mean), mean=name, var=join(path, "running_var"), eps=_EPS, **has)
                entries.append(_Entry(path, norm=norm))
        elif attribute == "weight" and tensor.ndim in _KINDS and "embed" not in path.rpartition(".")[2]:
            bias = join(path, "bias")
            upwards = bias in tensors and tensors[bias].shape != tensor.shape[:1]
            upwards = upwards or (tensor.ndim > 2 and _UPWARDS.search(path) is not None)
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
                    refusal=f"probably transposed, of how many groups is not known; {_ASK}" if upwards else "",
                )
            )
        elif tensor.ndim >= 2:
            refused.append(Remark(name, "tensor", f"its part in the network is not known; {_ASK}"))
    aside = []
    if any(entry.norm for entry in entries):
        aside.append(Remark("*", "BatchNorm", f"a state dict does not hold eps: {_EPS} is assumed"))
    if any(entry.layer and entry.layer.kind != "Linear" for entry in entries):
        aside.append(
            Remark("*", "convolution", "a state dict does not say which are transposed: none is assumed to be")
        )
    return _graph(entries, refused, {}, ordered=ordered, reason=_ASK, aside=tuple(aside))


def agreeing(entries: list[tuple[str, bool]]) -> dict[str, str]:
    """Norm path -> layer path where order and names agree.

    Args:
        entries: (path, whether it is a norm), in the order of registration.
    """
    layers = {path for path, is_norm in entries if not is_norm}
    pairs: dict[str, str] = {}
    last: str | None = None  # the layer registered last, unless it has its norm already
    for path, is_norm in entries:
        if not is_norm:
            last = path
        elif last is not None and last in partners(path) & layers:
            pairs[path], last = last, None
    return pairs


def partners(norm: str) -> set[str]:
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
    aside: tuple[Remark, ...],
) -> LayerGraph:
    norms = {entry.path: entry.norm for entry in entries if entry.norm is not None}
    found = agreeing([(entry.path, entry.layer is None) for entry in entries]) if ordered else {}
    by_layer = {layer: norm for norm, layer in found.items()}
    certain = len(found) == len([entry for entry in entries if entry.layer is None])  # then no other layer has a norm
    layers, uncovered = [], list(refused)
    for entry in entries:
        layer, norm = entry.layer, by_layer.get(entry.path)
        if entry.refusal:
            uncovered.append(Remark(entry.path, entry.kind, entry.refusal))
        elif layer is None:
            continue
        elif norm in norms and norms[norm].channels == layer.out_channels:
            layers.append(Layer(**{**layer.__dict__, "norm": norm}))
        elif norm is None and certain:
            layers.append(layer)
        else:
            why = "names and order do not agree on its norm" if ordered else "a file that keeps no order of layers"
            if norm is not None:
                why = f"{norm} does not fit it"
            uncovered.append(Remark(layer.path, layer.kind, f"{why}; {reason}"))
    matrices = [layer.path for layer in layers if layer.kind == "Linear"]
    single = len([entry for entry in entries if entry.layer and entry.layer.kind == "Linear"]) == 1
    return LayerGraph(
        layers=tuple(layers),
        norms=norms,
        unpaired_norms=tuple(path for path in norms if path not in found),
        classifier=matrices[0] if single and matrices else None,
        outputs=tuple(matrices) if single else (),
        uncovered=tuple(uncovered),
        aside=aside if layers else (),
        aliases=aliases,
    )
