"""Dataflow by torch.fx: symbolic, needs no input, and reads most networks in tens of milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from unbackdoor.graph.dataflow import Dataflow
from unbackdoor.graph.modules import (
    INPUT_NORMS,
    is_batch_norm,
    is_layer,
    is_unreadable,
    runs_torch_forward,
)
from unbackdoor.graph.owners import Owners

_CONVS: dict[Any, bool] = {
    F.conv1d: False,
    F.conv2d: False,
    F.conv3d: False,
    F.linear: False,
    F.conv_transpose1d: True,
    F.conv_transpose2d: True,
    F.conv_transpose3d: True,
}
_SHAPE_METHODS = {"size", "dim", "ndimension", "numel", "stride", "get_device", "is_contiguous", "type"}
_SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout"}
#: Of their second argument they read the shape alone.
_SHAPE_OF_SECOND = {"reshape_as", "view_as", "expand_as", "type_as"}
_ALIAS_METHODS = {"contiguous", "detach", "clone"}
_ALIAS_MODULES = (nn.Identity, nn.modules.dropout._DropoutNd)
_ALIAS_FUNCTIONS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}


class _Tracer(fx.Tracer):
    """Keeps layers and norms whole, and walks into everything else."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_batch_norm(m):
            return True
        if is_layer(m):
            return runs_torch_forward(m)
        return super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, owners: Owners) -> Dataflow:
    """Trace a network that is in eval mode.

    Raises:
        Exception: whatever torch.fx raises where it cannot follow the code.
    """
    flow = Dataflow("fx")
    modules = dict(model.named_modules(remove_duplicate=False))
    numbers: dict[fx.Node, int] = {}
    params: dict[fx.Node, frozenset[str]] = {}  # nodes that are tensors of the network, or computed from them alone
    for node in _Tracer().trace(model).nodes:
        if node.op == "placeholder":
            numbers[node] = flow.add("input")
        elif node.op == "get_attr":
            params[node] = frozenset({str(node.target)})
        elif node.op == "output":
            flow.add("output", _numbers(node, numbers))
        elif node.op == "call_module":
            numbers[node] = _module(flow, owners, modules[str(node.target)], str(node.target), _numbers(node, numbers))
        else:
            used = _sources(node, params)
            inputs = _numbers(node, numbers)
            if used and not inputs:
                params[node] = used
            else:
                numbers[node] = _call(flow, owners, node, inputs, params)
    return flow


def _module(flow: Dataflow, owners: Owners, module: nn.Module, path: str, inputs: tuple[int, ...]) -> int:
    if is_layer(module):
        return owners.call_layer(flow, path, inputs)
    if is_batch_norm(module):
        return owners.call_norm(flow, path, inputs)
    if is_unreadable(module):
        flow.refuse(path, type(module).__name__, "weights of this kind are not scored")
        return flow.add("other", inputs)
    if isinstance(module, INPUT_NORMS):
        return flow.add("input_norm", inputs, type(module).__name__)
    if isinstance(module, _ALIAS_MODULES) and inputs:
        return flow.add("alias", inputs)
    return owners.call_opaque(flow, path, inputs)


def _call(
    flow: Dataflow,
    owners: Owners,
    node: fx.Node,
    inputs: tuple[int, ...],
    params: dict[fx.Node, frozenset[str]],
) -> int:
    target = node.target
    if _reads_shape(node):
        return flow.add("shape", inputs)
    if target in _CONVS:
        groups = 1 if target is F.linear else _argument(node, 6, "groups") or 1
        return owners.call_weight(
            flow,
            inputs,
            weight=_exact(_argument(node, 1, "weight")),
            bias=_exact(_argument(node, 2, "bias")),
            made_of=_sources(node, params),
            function=_name(target),
            groups=groups,
            transposed=_CONVS[target],
        )
    if target is F.batch_norm:
        mean = _argument(node, 1, "running_mean")
        if isinstance(mean, fx.Node) and mean.op == "get_attr":
            return owners.call_norm(flow, str(mean.target).rpartition(".")[0], inputs)
        return flow.add("input_norm", inputs, "BatchNorm without running statistics")
    if target in (F.layer_norm, F.group_norm, F.instance_norm, F.local_response_norm):
        return flow.add("input_norm", inputs, str(getattr(target, "__name__", target)))
    alias = (node.op == "call_method" and target in _ALIAS_METHODS) or target in _ALIAS_FUNCTIONS
    if (alias or _merges_leading(node, owners)) and inputs:
        return flow.add("alias", inputs[:1])
    if node.op == "call_method" and target in _SHAPE_OF_SECOND:
        inputs = inputs[:1]
    exact = [str(i.target) for i in node.all_input_nodes if i.op == "get_attr"]
    return owners.call_function(flow, inputs, exact=exact, made_of=_sources(node, params), function=_name(target))


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def _merges_leading(node: fx.Node, owners: Owners) -> bool:
    """`x.flatten(0, 1)`: how implementers put a (N, L, C) result of a Linear before a BatchNorm1d.

    Of a convolution's (N, C, ...) it would merge the channels.
    """
    source = node.args[0] if node.args else None
    if node.target not in ("flatten", torch.flatten) or not isinstance(source, fx.Node) or node.args[1:] != (0, 1):
        return False
    linear = source.op == "call_module" and isinstance(owners.modules[str(source.target)], nn.Linear)
    return linear or source.target is F.linear


def _exact(value: Any) -> str | None:
    """The name of a tensor of the network that is used as it is."""
    return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else None


def _argument(node: fx.Node, index: int, name: str) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def _numbers(node: fx.Node, numbers: dict[fx.Node, int]) -> tuple[int, ...]:
    return tuple(numbers[i] for i in node.all_input_nodes if i in numbers)


def _sources(node: fx.Node, params: dict[fx.Node, frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*(params[i] for i in node.all_input_nodes if i in params))


def _name(target: Callable[..., Any] | str) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))
