"""Layers and pairs without a dataflow graph: a file without an architecture, or a network that no tracer follows.

A pair takes three witnesses: names and order that agree, and statistics that the layer before can have produced
(evidence.py; docs/pairing.md has the measurements). Of a layer without a norm nobody says whether it makes the answers
or a gate: it is scored, never edited, and listed as not covered. Nothing here is guessed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor.findings import Remark
from unbackdoor.findings.layers import Layer, LayerGraph, Norm
from unbackdoor.graph.evidence import Verdict, is_plain, judge
from unbackdoor.graph.modules import (
    is_batch_norm,
    is_frozen,
    is_layer,
    is_unreadable,
    join,
    read_layer,
    read_norm,
    runs_torch_forward,
)
from unbackdoor.graph.owners import Owners

_KINDS = {2: "Linear", 3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}
#: A state dict does not hold it; this is torch's default.
_EPS = 1e-5
#: Transposed convolutions keep their output channels in the second place, which a square weight does not betray.
_UPWARDS = re.compile(r"deconv|transpose|convt(?![a-z])|upconv|up_?sample|(?<![a-z])up\d*(?![a-z])", re.IGNORECASE)
#: Numbers that are looked up or laid down, not those of a layer.
_FIXED = re.compile(r"(?<![a-z])(i?stft|mel|dct|fbank)(?![a-z])|filter_?bank|basis|fourier|embed[a-z]*$", re.IGNORECASE)
#: What multiplies other channels may have a norm of its own.
_GATE = re.compile(
    r"(?<![a-z])(se|gates?|gating|psi|cbam|bam|attn|attention)(?![a-z])|squeeze|excit|(spatial|channel)_?att",
    re.IGNORECASE,
)
#: What a layer that makes class scores is called.
_CLASSIFIER = re.compile(r"(?<![a-z])(fc|linear|classifier|head|logits?|cls|out|output)(?![a-z])", re.IGNORECASE)
#: ANP's norms carry a factor on gamma (`neuron_mask`), and noise that plays no part at test time.
_MASK, _NOISE = "neuron_mask", ("neuron_noise", "neuron_noise_bias")
#: What is added to channels makes none of them larger.
_ADDED = re.compile(r"(?:^|[._])bias(?:_[a-z0-9]+)*$")
_ASK = "give the architecture with --arch (arch=...)"
_MAY_MULTIPLY = "its role is not known; it may multiply channels"


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
            refusal = "" if runs_torch_forward(module) else "it has a custom forward pass that could not be traced"
            entries.append(_Entry(path, layer=read_layer(module, path, "names"), refusal=refusal))
        elif is_batch_norm(module):
            norm = read_norm(module, path)
            if norm is not None and not (is_frozen(module) or runs_torch_forward(module)):
                entries.append(_Entry(path, refusal="it has a custom forward pass that could not be traced"))
            elif norm is not None and any(x is not None and x not in owners.tensors for x in (norm.weight, norm.bias)):
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
        custom = kind is nn.Module or not kind.__module__.startswith("torch.nn.modules.")
        if isinstance(tensor, nn.Parameter) and tensor.numel() > 1 and custom and not inside:
            refused.append(Remark(name, "parameter", f"{_MAY_MULTIPLY}: it could not be traced"))
    reason = f"the network could not be traced ({failure})"
    aside = (Remark("*", "network", f"read by names and order only: {reason}"),)
    return _graph(entries, refused, owners.tensors, owners.aliases, ordered=True, reason=reason, aside=aside)


def of_tensors(tensors: Mapping[str, Tensor], *, ordered: bool) -> LayerGraph:
    """The layers of a state dict.

    Args:
        tensors: name -> tensor.
        ordered: whether their order is that of the modules.
    """
    entries, refused = [], []
    known: set[str] = set()  # what a layer or norm was read from
    for name, tensor in tensors.items():
        path, _, attribute = name.rpartition(".")
        if join(path, "running_mean") in tensors and join(path, "running_var") in tensors:
            if attribute == "running_mean":
                entries.append(_norm_entry(path, tensors))
            if attribute in ("weight", "bias", "running_mean", "running_var", _MASK, *_NOISE):
                known.add(name)
        elif tensor.ndim >= 2 and _FIXED.search(path):
            refused.append(
                Remark(name, "tensor", f"its name is that of an embedding or a fixed basis, not of a layer; {_ASK}")
            )
        elif attribute == "weight" and tensor.ndim in _KINDS:
            entries.append(_layer_entry(path, tensors))
            known |= {name, join(path, "bias")}
        elif tensor.ndim >= 2:
            refused.append(Remark(name, "tensor", f"its role is not known; {_ASK}"))
    for name, tensor in tensors.items():
        if name not in known and tensor.ndim == 1 and tensor.numel() > 1 and not _ADDED.search(name):
            refused.append(Remark(name, "tensor", f"{_MAY_MULTIPLY}; {_ASK}"))
    aside = []
    if any(entry.norm for entry in entries):
        aside.append(Remark("*", "BatchNorm", f"a state dict does not store eps, so {_EPS} is assumed"))
    if any(entry.layer and entry.layer.kind != "Linear" for entry in entries):
        aside.append(
            Remark(
                "*",
                "convolution",
                "a state dict does not say which convolutions are transposed, so none is assumed to be",
            )
        )
    return _graph(entries, refused, tensors, {}, ordered=ordered, reason=_ASK, aside=tuple(aside))


def _norm_entry(path: str, tensors: Mapping[str, Tensor]) -> _Entry:
    """A norm of a state dict."""
    mean, var, mask = (join(path, name) for name in ("running_mean", "running_var", _MASK))
    weight, bias, gain = (x if x in tensors else None for x in (join(path, "weight"), join(path, "bias"), mask))
    others = [tensors[name] for name in (var, weight, bias, gain) if name is not None]
    if tensors[mean].ndim != 1 or any(x.shape != tensors[mean].shape for x in others):
        return _Entry(path, refusal="its tensors have different lengths")
    if gain is not None and (weight is None or not _is_finite(tensors[gain])):
        return _Entry(path, refusal=f"its {_MASK} has no weight to multiply, or is not finite")
    norm = Norm(
        path=path,
        channels=len(tensors[mean]),
        weight=weight,
        bias=bias,
        mean=mean,
        var=var,
        eps=_EPS,
        gain=gain,
    )
    return _Entry(path, norm=norm)


def _is_finite(tensor: Tensor) -> bool:
    return is_plain(tensor) and bool(torch.isfinite(tensor).all())


def _layer_entry(path: str, tensors: Mapping[str, Tensor]) -> _Entry:
    """A layer of a state dict."""
    weight, bias = tensors[join(path, "weight")], join(path, "bias")
    upwards = bias in tensors and tensors[bias].shape != weight.shape[:1]
    upwards = upwards or (weight.ndim > 2 and _UPWARDS.search(path) is not None)
    layer = Layer(
        path=path,
        kind=_KINDS[weight.ndim],
        out_channels=len(weight),
        rule="names",
        weight=join(path, "weight"),
        bias=bias if bias in tensors else None,
    )
    refusal = f"it is probably transposed, and its number of groups is not known; {_ASK}" if upwards else ""
    return _Entry(path, layer=layer, refusal=refusal)


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
    tensors: Mapping[str, Tensor],
    aliases: Mapping[str, tuple[str, ...]],
    *,
    ordered: bool,
    reason: str,
    aside: tuple[Remark, ...],
) -> LayerGraph:
    norms = {entry.path: entry.norm for entry in entries if entry.norm is not None}
    found = agreeing([(entry.path, entry.layer is None) for entry in entries]) if ordered else {}
    by_layer = {layer: norm for norm, layer in found.items()}
    proposed = {
        entry.path: (entry.layer, norms[by_layer[entry.path]])
        for entry in entries
        if entry.layer is not None and not entry.refusal and by_layer.get(entry.path) in norms
    }
    proposed = {path: pair for path, pair in proposed.items() if pair[0].out_channels == pair[1].channels}
    verdicts = judge(list(proposed.values()), tensors)
    unpaired = {norm for norm in norms if norm not in found or verdicts.get(found[norm]) == "differs"}
    # With every norm paired, no other layer has one.
    certain = not unpaired and len(found) == len([entry for entry in entries if entry.layer is None])
    last = next((entry.path for entry in reversed(entries) if entry.layer is not None), None)
    classifier = _classifier(entries, tensors) if ordered else None
    layers, uncovered = [], list(refused)
    for entry in entries:
        layer, norm = entry.layer, by_layer.get(entry.path)
        if entry.refusal:
            uncovered.append(Remark(entry.path, entry.kind, entry.refusal))
        elif layer is None:
            continue
        elif entry.path in proposed and verdicts[entry.path] != "differs":
            paired = dataclasses.replace(layer, norm=norm)
            layers.append(_with_part(paired, verdicts[entry.path], reason, last=entry.path == last))
        elif entry.path in proposed:
            why = "the norm that names and order give it has running means that do not fit its weights"
            uncovered.append(Remark(layer.path, layer.kind, f"{why}; {reason}"))
        elif layer.path == classifier:
            layers.append(dataclasses.replace(layer, part="answer"))
        elif norm is None and certain:
            why = f"its role is not known: answers, a gate, or hidden channels; {reason}"
            layers.append(dataclasses.replace(layer, part="unknown", why=why))
        else:
            why = (
                "its name and its place give it different norms"
                if ordered
                else "the file does not keep the order of layers"
            )
            if norm is not None:
                why = f"its norm {norm} does not fit it"
            uncovered.append(Remark(layer.path, layer.kind, f"{why}; {reason}"))
    return LayerGraph(
        layers=tuple(layers),
        norms=norms,
        unpaired_norms=tuple(path for path in norms if path in unpaired),
        classifier=classifier,
        outputs=() if classifier is None else (classifier,),
        uncovered=tuple(uncovered),
        aside=aside if layers else (),
        aliases=aliases,
    )


def _with_part(layer: Layer, verdict: Verdict, reason: str, *, last: bool) -> Layer:
    """A layer with its norm, hidden where nothing speaks against it."""
    why = ""
    if verdict == "silent":
        why = "its norm is known by names and order only; the statistics do not confirm it"
    elif last:
        why = "it is the last layer registered, so it may make the answers"
    elif _GATE.search(layer.path):
        why = "its name is that of a gate, which zero would not switch off"
    return dataclasses.replace(layer, part="unknown", why=f"{why}; {reason}") if why else layer


def _classifier(entries: list[_Entry], tensors: Mapping[str, Tensor]) -> str | None:
    """The only Linear, where everything says that it makes the class scores.

    It is the last layer registered, is called so, and reads the channels of the last norm.
    """
    linear = [entry for entry in entries if entry.layer is not None and entry.layer.kind == "Linear"]
    if len(linear) != 1 or linear[0] is not entries[-1] or linear[0].refusal:
        return None
    layer = linear[0].layer
    norm = next((entry.norm for entry in reversed(entries) if entry.norm is not None), None)
    if layer is None or norm is None or not norm.channels or not _CLASSIFIER.search(layer.path):
        return None
    return layer.path if tensors[layer.weight].shape[1] % norm.channels == 0 else None
