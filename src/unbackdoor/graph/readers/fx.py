"""Dataflow by torch.fx: symbolic, needs no input, and reads most networks in tens of milliseconds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from unbackdoor.dataflow.effects import Call, Effect, changes_in_place, effect, of_module
from unbackdoor.dataflow.flow import Dataflow
from unbackdoor.dataflow.values import Values
from unbackdoor.graph.examples import norm_ranks
from unbackdoor.graph.modules import (
    INPUT_NORMS,
    is_batch_norm,
    is_frozen,
    is_layer,
    is_unreadable,
    join,
    runs_torch_forward,
    unwrap,
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
_SHAPE_METHODS = {
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "get_device", "is_contiguous", "element_size"),
    *("is_floating_point", "new_zeros", "new_ones", "new_empty", "new_full"),
}
_SHAPE_FUNCTIONS = {torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like, torch.numel}
_SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout"}
#: Of their second argument they read the shape alone.
_SHAPE_OF_SECOND = {"reshape_as", "view_as", "expand_as", "type_as"}
_ALIAS_METHODS = {"contiguous", "detach", "clone"}
_ALIAS_MODULES = (nn.Identity, nn.modules.dropout._DropoutNd)
_ALIAS_FUNCTIONS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
_INPUT_NORM_FUNCTIONS = {F.layer_norm, F.group_norm, F.instance_norm, F.local_response_norm}


class _Tracer(fx.Tracer):
    """Keeps layers and norms whole, and walks into everything else."""

    proxy_buffer_attributes = True  # or a buffer that a forward pass counts in would really count

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_frozen(m) or is_unreadable(m) or isinstance(m, torch.jit.ScriptModule):
            return True
        if is_batch_norm(m) or is_layer(m):
            return runs_torch_forward(m)
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        _, inner = unwrap(m)
        return super().call_module(m, forward, args, kwargs) if inner is m else inner(*args, **kwargs)


def trace(model: nn.Module, owners: Owners, example: Any = None) -> Dataflow:
    """Trace a network that is in eval mode.

    Args:
        example: an input or several, for the few questions that only shapes answer.

    Raises:
        Exception: whatever torch.fx raises where it cannot follow the code.
    """
    prefix, inner = unwrap(model)
    if "forward" in vars(inner):
        raise TypeError("the network's forward was replaced on this instance, which torch.fx does not see")
    nodes = list(_Tracer().trace(inner, _defaults(inner)).nodes)
    for node in nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = join(prefix, str(node.target))
    return _Reader(nodes, owners, norm_ranks(model, example)).flow


def _defaults(model: nn.Module) -> dict[str, Any]:
    """The arguments of a forward pass that a plain call leaves at their defaults: a mask that is None stays None."""
    arguments = inspect.signature(type(model).forward).parameters.values()
    return {x.name: x.default for x in arguments if x.default is None or isinstance(x.default, (bool, int, float, str))}


class _Reader:
    """A symbolic graph, read node by node into `flow`.

    Args:
        ranks: from the path of a norm to the number of dimensions of what it is called on.
    """

    def __init__(self, nodes: Iterable[fx.Node], owners: Owners, ranks: Callable[[str], int | None]) -> None:
        self.flow = Dataflow("fx")
        self.owners = owners
        self.ranks = ranks
        self.values = Values(self.flow, owners.tensors)
        numbers = self.values.numbers
        params: dict[fx.Node, frozenset[str]] = {}  # tensors of the network, or computed from them alone
        for node in nodes:
            inputs = tuple(numbers[i] for i in node.all_input_nodes if i in numbers)
            used = frozenset[str]().union(*(params[i] for i in node.all_input_nodes if i in params))
            if node.op == "placeholder":
                numbers[node] = self.flow.add("input")
            elif node.op == "get_attr" and str(node.target) in self.values.written:
                numbers[node] = self.values.written[str(node.target)]
            elif node.op == "get_attr":
                params[node] = frozenset({str(node.target)})
            elif node.op == "output":
                self.flow.add("output", inputs)
            elif node.op == "call_module":
                numbers[node] = self._module(node, inputs)
                if getattr(self.owners.modules[str(node.target)], "inplace", False):
                    self.values.write(node)
            elif used and not inputs and node.target not in _CONVS:
                params[node] = used
            else:
                numbers[node] = self._call(node, inputs, used)
                if changes_in_place(_name(node.target)) or node.kwargs.get("inplace") is True:
                    self.values.write(node)

    def _module(self, node: fx.Node, inputs: tuple[int, ...]) -> int:
        path = str(node.target)
        module, flow = self.owners.modules[path], self.flow
        if is_layer(module):
            return self.owners.call_layer(flow, path, inputs)
        if is_batch_norm(module):
            return self.owners.call_norm(flow, path, inputs, lambda: self.ranks(path))
        if is_unreadable(module):
            flow.refuse(path, type(module).__name__, "weights of this kind are not scored")
            script = isinstance(module, torch.jit.ScriptModule)
            return flow.add("opaque" if script else "weights", inputs, type(module).__name__)
        if isinstance(module, INPUT_NORMS):
            return flow.add("input_norm", inputs, type(module).__name__)
        if isinstance(module, _ALIAS_MODULES) and inputs:
            return flow.add("alias", inputs)
        name, args = of_module(module, node.args)
        return self.owners.call_opaque(
            flow, path, inputs, effect(Call(name, args, node.kwargs, self.values, flow.place))
        )

    def _call(self, node: fx.Node, inputs: tuple[int, ...], used: frozenset[str]) -> int:
        target, flow, owners = node.target, self.flow, self.owners
        if _reads_shape(node):
            return flow.add("shape", inputs)
        if target in _CONVS:
            groups = 1 if target is F.linear else _argument(node, 6, "groups") or 1
            return owners.call_weight(
                flow,
                inputs,
                weight=_exact(_argument(node, 1, "weight")),
                bias=_exact(_argument(node, 2, "bias")),
                bias_computed=_argument(node, 2, "bias") is not None and _exact(_argument(node, 2, "bias")) is None,
                made_of=used,
                function=_name(target),
                groups=groups,
                transposed=_CONVS[target],
            )
        if target is F.batch_norm:
            mean = _exact(_argument(node, 1, "running_mean"))
            eps = _argument(node, 7, "eps")
            return owners.call_bare_norm(
                flow,
                inputs,
                lambda: self.ranks((mean or "").rpartition(".")[0]),
                mean=mean,
                gamma=_exact(_argument(node, 3, "weight")),
                made_of=used,
                training=bool(_argument(node, 5, "training")),
                eps=1e-5 if eps is None else float(eps),
            )
        if target in _INPUT_NORM_FUNCTIONS:
            return flow.add("input_norm", inputs, _name(target))
        alias = (node.op == "call_method" and target in _ALIAS_METHODS) or target in _ALIAS_FUNCTIONS
        if inputs and (alias or self._merges_leading(node)):
            return flow.add("alias", inputs[:1])
        if node.op == "call_method" and target in _SHAPE_OF_SECOND:
            inputs = inputs[:1]
        exact = [str(i.target) for i in node.all_input_nodes if i.op == "get_attr"]
        return owners.call_function(flow, inputs, exact=exact, made_of=used, effect=self._effect(node))

    def _effect(self, node: fx.Node) -> Effect:
        args = node.args
        # A NamedTuple or a dataclass is a container of values.
        name = "cat" if isinstance(node.target, type) else _name(node.target)
        if node.op == "call_method" and name == "where" and len(args) > 1:
            args = (args[1], args[0], *args[2:])
        if node.op == "call_method" and name in _SHAPE_OF_SECOND:
            args = args[:1]
        return effect(Call(name, args, node.kwargs, self.values, self.flow.place))

    def _merges_leading(self, node: fx.Node) -> bool:
        """`x.flatten(0, 1)`: how implementers put a (N, L, C) result of a Linear before a BatchNorm1d.

        Of a convolution's (N, C, ...) it would merge the channels.
        """
        source = node.args[0] if node.args else None
        if node.target not in ("flatten", torch.flatten) or not isinstance(source, fx.Node) or node.args[1:] != (0, 1):
            return False
        linear = source.op == "call_module" and isinstance(self.owners.modules[str(source.target)], nn.Linear)
        return linear or source.target is F.linear


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    if node.target in _SHAPE_FUNCTIONS:
        return True
    return node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def _exact(value: Any) -> str | None:
    """The name of a tensor of the network that is used as it is."""
    return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else None


def _argument(node: fx.Node, index: int, name: str) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def _name(target: Callable[..., Any] | str) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))
