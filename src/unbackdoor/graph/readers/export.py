"""Dataflow by torch.export: runs the network on shapes alone, follows any Python code, needs an input."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import torch
from torch import fx, nn

from unbackdoor.dataflow.effects import Call, changes_in_place, effect
from unbackdoor.dataflow.flow import Dataflow
from unbackdoor.dataflow.values import Values
from unbackdoor.graph.examples import examples
from unbackdoor.graph.modules import join, unwrap
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
_VIEWS = {_aten.flatten, _aten.view, _aten.reshape}
_SHAPES = {
    *(_aten.sym_size, _aten.size, _aten.zeros_like, _aten.ones_like, _aten.empty_like, _aten.full_like),
    *(_aten.new_zeros, _aten.new_ones, _aten.new_empty, _aten.new_full, _aten._assert_tensor_metadata),
}
#: Of their second argument they read the shape alone.
_SHAPE_OF_SECOND = {_aten.reshape_as, _aten.view_as, _aten.expand_as, _aten.type_as}
_INPUT_NORMS = {_aten.layer_norm, _aten.group_norm, _aten.instance_norm}


def trace(model: nn.Module, owners: Owners, example: Any = None) -> Dataflow:
    """Trace a network that is in eval mode.

    Args:
        example: an input or a tuple of inputs; None tries the usual image sizes.

    Raises:
        Exception: whatever torch.export raises where it cannot follow the code, for the last input tried.
    """
    prefix, inner = unwrap(model)
    failure: Exception = RuntimeError("no input to try")
    for args, kwargs in examples(inner, example):
        try:
            # Where it fails, torch.export prints the program so far, tens of thousands of lines.
            with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                program = torch.export.export(inner, args, kwargs, strict=False)
        except Exception as error:
            failure = error
            if "DataDependent" in type(error).__name__:
                break  # no other size helps
            continue
        return _Reader(program, owners, prefix).flow
    raise failure


class _Reader:
    """An exported program, read node by node into `flow`."""

    def __init__(self, program: torch.export.ExportedProgram, owners: Owners, prefix: str) -> None:
        self.flow = Dataflow("export")
        self.owners = owners
        self.prefix = prefix
        signature = program.graph_signature
        stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.stored = {node: join(prefix, tensor) for node, tensor in stored.items()}
        self.values = Values(self.flow, owners.tensors)
        numbers = self.values.numbers
        params: dict[fx.Node, frozenset[str]] = {}  # tensors of the network, or computed from them alone
        for node in program.graph.nodes:
            inputs = tuple(numbers[i] for i in node.all_input_nodes if i in numbers)
            used = frozenset[str]().union(*(params[i] for i in node.all_input_nodes if i in params))
            if node.op == "placeholder" and node.name in self.stored:
                params[node] = frozenset({self.stored[node.name]})
            elif node.op == "placeholder" and node.name in signature.inputs_to_lifted_tensor_constants:
                numbers[node] = self.flow.add("shape")
            elif node.op == "placeholder":
                numbers[node] = self.flow.add("input")
            elif node.op == "output":
                self.flow.add("output", inputs)
            elif node.op == "get_attr" or (used and not inputs and node.target not in _CONVS):
                params[node] = used
            elif node.op == "call_function":
                numbers[node] = self._call(node, inputs, used)
                if changes_in_place(_name(node)):
                    self.values.write(node)

    def _call(self, node: fx.Node, inputs: tuple[int, ...], used: frozenset[str]) -> int:
        target = node.target
        packet: Any = getattr(target, "overloadpacket", target)
        if target in _CONVS:
            groups: Any = node.args[6] if packet is not _aten.linear and len(node.args) > 6 else 1
            return self.owners.call_weight(
                self.flow,
                inputs,
                weight=self._exact(node, 1),
                bias=self._exact(node, 2),
                bias_computed=len(node.args) > 2 and node.args[2] is not None and self._exact(node, 2) is None,
                made_of=used,
                function=packet.__name__,
                groups=int(groups),
                transposed=_CONVS[target],
            )
        if packet is _aten.batch_norm:
            training, eps = node.args[5], node.args[7]
            return self.owners.call_bare_norm(
                self.flow,
                inputs,
                lambda: int(_value(node, 0).ndim),
                mean=self._exact(node, 3),
                gamma=self._exact(node, 1),
                made_of=used,
                training=bool(training),
                eps=float(eps),  # type: ignore[arg-type]
            )
        if packet in _INPUT_NORMS:
            return self.flow.add("input_norm", inputs, packet.__name__)
        if packet in _SHAPES:
            return self.flow.add("shape", inputs)
        if packet in _ALIASES or (packet in _VIEWS and inputs and self._merges_leading(node, inputs)):
            return self.flow.add("alias", inputs[:1])
        if packet in _SHAPE_OF_SECOND:
            inputs = inputs[:1]
        frozen = self.owners.frozen(used)
        if frozen is not None and inputs:
            return self.owners.call_frozen(self.flow, frozen, inputs)
        named = [self.stored[i.name] for i in node.all_input_nodes if i.name in self.stored]
        args = node.args[:1] if packet in _SHAPE_OF_SECOND else node.args
        what = effect(Call(_name(node), args, node.kwargs, self.values, self.flow.place, _shapes(node)))
        return self.owners.call_function(self.flow, inputs, exact=named, made_of=used, effect=what)

    def _exact(self, node: fx.Node, index: int) -> str | None:
        """The name of a tensor that is used as it is; of a shared one, its name in the module that runs."""
        value = node.args[index] if len(node.args) > index else None
        name = self.stored.get(value.name) if isinstance(value, fx.Node) else None
        if name is None:
            return None
        running = [join(self.prefix, path) for path, _ in (node.meta.get("nn_module_stack") or {"": ("", "")}).values()]
        names = (name, *self.owners.aliases.get(name, ()))
        return next((x for x in names if x.rpartition(".")[0] == running[-1]), name)

    def _merges_leading(self, node: fx.Node, inputs: tuple[int, ...]) -> bool:
        """(N, L, C) -> (N * L, C) of a Linear's result: how implementers put it before a BatchNorm1d.

        Of a convolution's (N, C, L) it would merge the channels.
        """
        layer = self.flow.source(inputs[0])
        if layer is None or self.owners.tensors[layer.weight].ndim != 2:
            return False
        before, after = _value(node, 0).shape, node.meta["val"].shape
        return len(before) == 3 and tuple(after[1:]) == tuple(before[2:])


def _name(node: fx.Node) -> str:
    target: Any = node.target
    return getattr(getattr(target, "overloadpacket", target), "__name__", str(target))


def _shapes(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Of the first argument and of the result, if both are tensors of known size."""
    source = node.args[0] if node.args else None
    read, made = (source.meta.get("val") if isinstance(source, fx.Node) else None), node.meta.get("val")
    if not isinstance(read, torch.Tensor) or not isinstance(made, torch.Tensor):
        return None
    before, after = tuple(read.shape), tuple(made.shape)
    return (before, after) if all(isinstance(size, int) for size in (*before, *after)) else None


def _value(node: fx.Node, index: int) -> Any:
    """The tensor, without values, that an argument stands for."""
    source = node.args[index]
    assert isinstance(source, fx.Node)
    return source.meta["val"]
