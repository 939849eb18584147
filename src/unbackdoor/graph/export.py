"""Dataflow by torch.export: runs the network on shapes alone, follows any Python code, needs an input."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from unbackdoor.graph.dataflow import Dataflow
from unbackdoor.graph.owners import Owners

_aten = torch.ops.aten
_CONVS: dict[Any, bool] = {
    _aten.conv1d.default: False,
    _aten.conv2d.default: False,
    _aten.conv3d.default: False,
    _aten.conv1d.padding: False,
    _aten.conv2d.padding: False,
    _aten.conv3d.padding: False,
    _aten.linear.default: False,
    _aten.conv_transpose1d.default: True,
    _aten.conv_transpose2d.input: True,
    _aten.conv_transpose3d.input: True,
}
_ALIASES = {_aten.contiguous, _aten.detach, _aten.clone, _aten.dropout, _aten.alias, _aten.feature_dropout}
_SHAPES = {_aten.sym_size, _aten.size}
_INPUT_NORMS = {_aten.layer_norm, _aten.group_norm, _aten.instance_norm}

#: Tried in this order where no example is given: the sizes that image networks are built for.
_SIZES = (224, 256, 32, 64, 299, 384, 28)


def trace(model: nn.Module, owners: Owners, example: Any = None) -> Dataflow:
    """Trace a network that is in eval mode.

    Args:
        example: an input or a tuple of inputs; None tries the usual image sizes.

    Raises:
        Exception: whatever torch.export raises where it cannot follow the code, for the last input tried.
    """
    failure: Exception = RuntimeError("no input to try")
    for inputs in _examples(model, example):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(model, inputs, strict=False)
        except Exception as error:
            failure = error
            continue
        return _read(program, owners)
    raise failure


def _examples(model: nn.Module, example: Any) -> Iterator[tuple[Any, ...]]:
    if example is not None:
        yield example if isinstance(example, tuple) else (example,)
        return
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    module = next((m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))), None)

    def zeros(*shape: int) -> tuple[torch.Tensor]:
        return (torch.zeros(2, *shape, dtype=first.dtype, device=first.device),)

    if isinstance(module, nn.Linear):
        yield zeros(module.in_features)
        return
    channels, ndim = 3, 2
    if module is not None:
        channels, ndim = module.in_channels, len(module.kernel_size)
    config = getattr(model, "pretrained_cfg", None)  # timm says what a network is built for
    size = config.get("input_size") if isinstance(config, dict) else None
    if size:
        yield zeros(*size)
    for side in _SIZES if ndim == 2 else (64, 16):
        yield zeros(channels, *(side,) * ndim)


def _read(program: torch.export.ExportedProgram, owners: Owners) -> Dataflow:
    flow = Dataflow("export")
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    numbers: dict[fx.Node, int] = {}
    params: dict[fx.Node, frozenset[str]] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in stored:
                params[node] = frozenset({stored[node.name]})
            else:
                numbers[node] = flow.add("input")
            continue
        inputs = tuple(numbers[i] for i in node.all_input_nodes if i in numbers)
        used = frozenset[str]().union(*(params[i] for i in node.all_input_nodes if i in params))
        if node.op == "output":
            flow.add("output", inputs)
        elif node.op == "get_attr" or (used and not inputs):
            params[node] = used
        elif node.op == "call_function":
            numbers[node] = _call(flow, owners, node, inputs, used, stored)
    return flow


def _call(
    flow: Dataflow,
    owners: Owners,
    node: fx.Node,
    inputs: tuple[int, ...],
    used: frozenset[str],
    stored: dict[str, str],
) -> int:
    def exact(index: int) -> str | None:
        value = node.args[index] if len(node.args) > index else None
        return stored.get(value.name) if isinstance(value, fx.Node) else None

    target = node.target
    packet: Any = getattr(target, "overloadpacket", target)
    if target in _CONVS:
        groups: Any = node.args[6] if packet is not _aten.linear and len(node.args) > 6 else 1
        return owners.call_weight(
            flow,
            inputs,
            weight=exact(1),
            bias=exact(2),
            made_of=used,
            function=packet.__name__,
            groups=int(groups),
            transposed=_CONVS[target],
        )
    if packet is _aten.batch_norm:
        mean = exact(3)
        source = node.args[0]
        if mean is not None and isinstance(source, fx.Node):
            path = mean.rpartition(".")[0]
            if source.meta["val"].ndim == 2 or not _from_linear(source):
                return owners.call_norm(flow, path, inputs)
        return flow.add("input_norm", inputs, "BatchNorm of another axis or without running statistics")
    if packet in _INPUT_NORMS:
        return flow.add("input_norm", inputs, packet.__name__)
    if packet in _SHAPES:
        return flow.add("shape", inputs)
    if packet in _ALIASES:
        return flow.add("alias", inputs[:1])
    named = [stored[i.name] for i in node.all_input_nodes if i.name in stored]
    return owners.call_function(
        flow, inputs, exact=named, made_of=used, function=getattr(packet, "__name__", str(target))
    )


def _from_linear(node: fx.Node) -> bool:
    """Whether a Linear's result comes straight in: its channels are last, and a norm of dim 1 is not theirs."""
    return getattr(node.target, "overloadpacket", None) is _aten.linear
