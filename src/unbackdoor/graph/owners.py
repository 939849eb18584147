"""From a tensor in a traced call back to the module that owns it, and from there to a layer or norm of the dataflow."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from unbackdoor.dataflow.effects import KNOWN_INSIDE, Effect, Role, canonical
from unbackdoor.dataflow.flow import Dataflow
from unbackdoor.dataflow.places import Place
from unbackdoor.findings import Remark
from unbackdoor.findings.layers import Layer, LayerGraph
from unbackdoor.graph.modules import (
    is_batch_norm,
    is_frozen,
    is_layer,
    is_unreadable,
    join,
    read_attention,
    read_layer,
    read_norm,
)

#: Functions that multiply by a matrix: a bare parameter in one of them is a layer's weight in all but name.
_PRODUCTS = frozenset(
    ("matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "tensordot", "inner", "mv", "dot", "bilinear")
)
#: What transforms are called that are computed once, and not learnt.
_BASIS = re.compile(r"(?<![a-z])(i?stft|mel|dct|fbank)(?![a-z])|filter_?bank|basis|fourier", re.IGNORECASE)


class Owners:
    """The modules and tensors of one network, by name."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.tensors = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        self._first: dict[nn.Module, str] = {}
        for path, module in self.modules.items():
            self._first.setdefault(module, path)
        names: dict[int, list[str]] = defaultdict(list)
        for name, tensor in self.tensors.items():
            names[id(tensor)].append(name)
        self.aliases = {
            name: tuple(other for other in group if other != name)
            for group in names.values()
            if len(group) > 1
            for name in group
        }

    def call_layer(self, flow: Dataflow, path: str, inputs: tuple[int, ...]) -> int:
        """A call of the convolution or Linear at `path`; one that has several names goes by the first."""
        path = self._first[self.modules[path]]
        if path not in flow.layers:
            flow.layers[path] = self._tie(read_layer(self.modules[path], path, flow.rule))
        return flow.add("layer", inputs, path, self._placed(flow.layers[path]))

    def call_norm(
        self, flow: Dataflow, path: str, inputs: tuple[int, ...], rank: Callable[[], int | None], **changes: Any
    ) -> int:
        """A call of the BatchNorm at `path`.

        Args:
            rank: the number of dimensions of what it is called on. Asked behind a Linear alone, whose channels come
                last: a norm of dimension 1 is theirs in (N, C), and belongs to another axis in (N, L, C).
            changes: what the call gives otherwise than the module does.
        """
        path = self._first[self.modules[path]]
        norm = read_norm(self.modules[path], path)
        if norm is None:
            return flow.add("input_norm", inputs, "BatchNorm without running statistics")
        if any(name is not None and name not in self.tensors for name in (norm.weight, norm.bias)):
            flow.refuse(path, type(self.modules[path]).__name__, "its weight or bias is computed by a parametrization")
            return flow.add("own_norm", inputs, "BatchNorm of computed weight")
        layer = flow.source(inputs[0]) if inputs else None
        if layer is not None and self.tensors[layer.weight].ndim == 2:
            ndim = rank()
            if ndim is None:
                flow.blind = True
                reason = f"{path} follows it, and the axis of that norm depends on the input's shape: give an example"
                flow.refuse(layer.path, layer.kind, reason)
            if ndim != 2:
                return flow.add("own_norm", inputs, "BatchNorm of another axis")
        flow.norms[path] = dataclasses.replace(norm, **changes)
        return flow.add("norm", inputs, path)

    def call_bare_norm(
        self,
        flow: Dataflow,
        inputs: tuple[int, ...],
        rank: Callable[[], int | None],
        *,
        mean: str | None,
        gamma: str | None,
        made_of: frozenset[str],
        training: bool,
        eps: float,
    ) -> int:
        """A call of the function batch_norm.

        Args:
            mean, gamma: names of its tensors, None where there is none or it is computed.
            made_of: every tensor that it is given or that its arguments are made of.
            training: whether it takes the batch's own statistics.
        """
        path = (mean or "").rpartition(".")[0]
        norm = read_norm(self.modules[path], path) if path in self.modules else None
        if training or norm is None or norm.mean != mean:
            return flow.add("input_norm", inputs, "BatchNorm without running statistics")
        if gamma not in (None, norm.weight) or not made_of <= {norm.mean, norm.var, gamma, norm.bias}:
            flow.refuse(path, "batch_norm", "its weight or bias is computed during the forward pass")
            return flow.add("own_norm", inputs, "BatchNorm of computed weight")
        return self.call_norm(flow, path, inputs, rank, weight=gamma, eps=eps)

    def frozen(self, made_of: frozenset[str]) -> str | None:
        """The norm of one's own making that the tensors belong to, written out in single operations."""
        paths = {name.rpartition(".")[0] for name in made_of}
        path = min(paths, default="")
        return path if len(paths) == 1 and is_frozen(self.modules.get(path)) else None

    def call_frozen(self, flow: Dataflow, path: str, inputs: tuple[int, ...]) -> int:
        """An operation of such a norm: the first that reads data stands for all, the others hand its result on."""
        first = flow.ops[flow.root(inputs[0])]
        if first.kind == "norm" and first.path == path:
            return flow.add("alias", inputs[:1])
        return self.call_norm(flow, path, inputs, lambda: None)

    def call_opaque(self, flow: Dataflow, path: str, inputs: tuple[int, ...], effect: Effect) -> int:
        """A call of a module that is not looked into: its layers are scored by themselves, if no norm hides there."""
        module = self.modules[path]
        inside = [(join(path, name) if name else path, m) for name, m in module.named_modules()]
        if any(is_batch_norm(m) for _, m in inside):
            flow.blind = True
            for inner, m in inside:
                if is_layer(m):
                    flow.refuse(
                        inner, type(m).__name__, f"it is inside {type(module).__name__}, which could not be traced"
                    )
            return flow.add("opaque", inputs, type(module).__name__)
        found: list[Layer] = []
        for inner, m in inside:
            if isinstance(m, nn.MultiheadAttention):
                found += read_attention(m, inner, flow.rule)
            elif is_unreadable(m):
                flow.refuse(inner, type(m).__name__, "weights of this kind are not scored")
            elif is_layer(m) and not any(layer.path == inner for layer in found):
                found.append(read_layer(m, inner, flow.rule))
        return self._holding(flow, found, inputs, effect)

    def call_weight(
        self,
        flow: Dataflow,
        inputs: tuple[int, ...],
        *,
        weight: str | None,
        bias: str | None,
        bias_computed: bool,
        made_of: frozenset[str],
        function: str,
        groups: int,
        transposed: bool,
    ) -> int:
        """A convolution or linear function with a weight of the network's.

        Args:
            weight, bias: names of its tensors; the weight's is None where it is computed.
            bias_computed: whether there is a bias that is no tensor of the network's.
            made_of: every tensor that weight and bias are made of.
            function: its name, for example "conv2d".
            groups, transposed: how the weight is laid out.
        """
        if weight is None:
            path = self._parametrized(made_of)
            if path is not None:
                return self.call_layer(flow, path, inputs)
            packed = self._packed(made_of, flow.rule)
            if packed is not None:
                return self._enter(flow, packed, inputs)
            for name in sorted(made_of):
                path, _, attribute = name.rpartition(".")
                flow.refuse(path or attribute, function, "its weight is computed during the forward pass")
            return flow.add("weights", inputs, function)
        path, _, attribute = weight.rpartition(".")
        owner = self.modules.get(path)
        if owner is not None and is_layer(owner) and attribute == "weight":
            layer = read_layer(owner, path, flow.rule)
            if (layer.groups, layer.transposed) != (groups, transposed):
                flow.refuse(path, layer.kind, f"{function} also uses its weight, with other groups or transposed")
                return flow.add("weights", inputs, function)
            number = self.call_layer(flow, path, inputs)
            if bias_computed or bias not in (None, layer.bias):
                called = flow.ops[number].path
                flow.layers[called] = dataclasses.replace(flow.layers[called], gain=None, parametrization="other")
            return number
        if bias_computed:  # nothing stored would switch a channel off
            flow.refuse(path or attribute, function, "its bias is computed during the forward pass")
            return flow.add("weights", inputs, function)
        if isinstance(owner, nn.MultiheadAttention):
            (layer, *_) = [x for x in read_attention(owner, path, flow.rule) if x.weight == weight]
        else:
            shape = self.tensors[weight].shape
            layer = Layer(
                path=path if attribute == "weight" else weight,
                kind=function,
                out_channels=shape[1] * groups if transposed else shape[0],
                rule=flow.rule,
                weight=weight,
                bias=bias,
                groups=groups,
                transposed=transposed,
            )
        return self._enter(flow, layer, inputs)

    def call_function(
        self, flow: Dataflow, inputs: tuple[int, ...], *, exact: Iterable[str], made_of: Iterable[str], effect: Effect
    ) -> int:
        """Any other function that reads tensors of the network.

        Args:
            exact: those that it is given as they are.
            made_of: those that others of its arguments are computed from.
            effect: what it does.
        """
        layers, refused = [], []
        function = effect.name
        for name in exact:
            path, _, attribute = name.rpartition(".")
            owner = self.modules.get(path)
            if owner is not None and is_layer(owner) and attribute == "weight":
                layers.append(read_layer(owner, path, flow.rule))
            elif isinstance(owner, nn.MultiheadAttention):
                layers += [layer for layer in read_attention(owner, path, flow.rule) if layer.weight == name]
            elif owner is not None and is_unreadable(owner):
                flow.refuse(path, type(owner).__name__, "weights of this kind are not scored")
            elif owner is not None and is_batch_norm(owner):
                refused.append(path)
        for name in {*exact, *made_of} if function in _PRODUCTS else ():
            if not any(name in (layer.weight, layer.bias) for layer in layers):
                refused.append(name)
        for path in refused:
            flow.refuse(
                path, "parameter", f"{function} multiplies the data by it, outside every convolution and Linear"
            )
        if refused:
            for layer in layers:
                flow.refuse(layer.path, layer.kind, f"{function} uses it together with {refused[0]}")
        return self._holding(flow, layers, inputs, effect)

    def remarks(self, flow: Dataflow) -> tuple[Remark, ...]:
        """What plays no part: modules that are never called, parameters outside every layer and norm.

        Of the latter, vectors of different values (LayerScale after training) may make one channel stand out, and are
        refused instead.
        """
        known = {name for layer in flow.layers.values() for name in (layer.weight, layer.bias, layer.gain)}
        result, idle = [], set()
        running = {self.modules[path] for path in (*flow.layers, *flow.norms, *flow.uncovered) if path in self.modules}
        for path, module in self.modules.items():
            called = module in running
            if (is_layer(module) or (is_batch_norm(module) and read_norm(module, path))) and not called:
                if any(layer.weight.startswith(path + ".") for layer in flow.layers.values()):
                    continue  # called under another name
                result.append(Remark(path, type(module).__name__, "never called in eval mode"))
                idle.add(path)
            if any(not hasattr(hook, "compute_weight") for hook in _hooks(module)):
                result.append(
                    Remark(path, type(module).__name__, "has forward hooks, which are assumed not to change the result")
                )
        spoken_for = idle.union(flow.layers)
        for name, tensor in self.tensors.items():
            owner = name.rpartition(".")[0]
            module = self.modules.get(owner)
            layer = module is not None and (is_layer(module) or is_batch_norm(module) or is_unreadable(module))
            usual = module is not None and type(module).__module__.startswith("torch.nn.modules.norm")
            parts = owner.split(".")
            inside = any(".".join(parts[:end]) in spoken_for for end in range(1, len(parts) + 1))
            reported = inside or name in known or name in flow.uncovered or owner in flow.uncovered
            many = isinstance(tensor, nn.Parameter) and tensor.numel() > 1
            if many and not layer and not reported and not usual:
                reason = (
                    "outside every convolution, Linear and BatchNorm; it may multiply channels, which no score shows"
                )
                if _singles_out(tensor):
                    flow.refuse(name, "parameter", reason)
                else:
                    result.append(Remark(name, "parameter", reason))
        return tuple(result)

    def learnt(self, graph: LayerGraph) -> LayerGraph:
        """The same graph without hidden layers whose weights were not trained, as those of an STFT; remarks say so."""
        fixed = {layer.path: self._fixed(layer, graph) for layer in graph.layers if layer.part == "hidden"}
        remarks = tuple(Remark(x.path, x.kind, str(fixed[x.path])) for x in graph.layers if fixed.get(x.path))
        layers = tuple(layer for layer in graph.layers if not fixed.get(layer.path))
        return dataclasses.replace(graph, layers=layers, aside=(*remarks, *graph.aside)) if remarks else graph

    def _fixed(self, layer: Layer, graph: LayerGraph) -> str | None:
        """Why a layer is taken for a fixed basis, if it is. Taking no gradient alone says little: whole networks do."""
        weight = self.tensors[layer.weight]
        if not isinstance(weight, nn.Parameter):
            return "its weight is a buffer, not a parameter, so it was not trained"
        if weight.requires_grad:
            return None
        if _BASIS.search(layer.path):
            return "its weight takes no gradient, and its name is that of a fixed basis"
        bare = layer.norm is None and layer.bias is None
        if bare and any(self.tensors[other.weight].requires_grad for other in graph.layers):
            return "it was not trained: only its weight takes no gradient, and it has neither bias nor norm"
        return None

    def _parametrized(self, made_of: frozenset[str]) -> str | None:
        """The layer whose parametrization (weight_norm, spectral_norm) the tensors belong to."""
        paths = {name.partition(".parametrizations.")[0] for name in made_of}
        paths = {path if path in self.modules else path.rpartition(".")[0] for path in paths}
        if len(paths) != 1:
            return None
        (path,) = paths
        module = self.modules[path]
        if not is_layer(module) or read_layer(module, path, "").parametrization is None:
            return None
        return path

    def _packed(self, made_of: frozenset[str], rule: str) -> Layer | None:
        """The packed projection of attention that a part of was cut from."""
        paths = {name.rpartition(".")[0] for name in made_of}
        owner = self.modules.get(min(paths, default=""))
        if len(paths) > 1 or not isinstance(owner, nn.MultiheadAttention) or owner.in_proj_weight is None:
            return None
        return read_attention(owner, min(paths), rule)[0]

    def _enter(self, flow: Dataflow, layer: Layer, inputs: tuple[int, ...]) -> int:
        flow.layers[layer.path] = self._tie(layer)
        return flow.add("layer", inputs, layer.path, self._placed(layer))

    def _holding(self, flow: Dataflow, layers: list[Layer], inputs: tuple[int, ...], effect: Effect) -> int:
        """A call of something that runs layers inside, or none."""
        data = [i for i in inputs if flow.varies(i)]
        if not layers:
            return flow.add("other" if data else "shape", inputs, effect=effect)
        inner = tuple(self._enter(flow, layer, inputs) for layer in layers)
        if effect.name in _PRODUCTS and len(data) <= 1:
            return flow.join(inner)
        if canonical(effect.name) in KNOWN_INSIDE:  # one way or another what goes in comes out beside what they make
            roles: tuple[tuple[int, Role], ...] = (*((i, "open") for i in data), *((i, "zero") for i in inner))
            return flow.add("other", inputs + inner, effect=Effect(effect.name, roles))
        for layer in layers:
            flow.doubts[layer.path] = f"it runs inside {effect.name}, which cannot be traced"
        return flow.add("opaque", inputs + inner, effect.name)

    def _placed(self, layer: Layer) -> Effect:
        """A layer's channels lie in the last place behind a matrix, and before the places behind a convolution."""
        ndim = self.tensors[layer.weight].ndim
        return Effect(place=Place(-1) if ndim < 3 else Place(1 - ndim, ndim))

    def _tie(self, layer: Layer) -> Layer:
        """Mark a layer whose weight another layer uses too."""
        others = [name for name in self.aliases.get(layer.weight, ()) if name.rpartition(".")[0] != layer.path]
        # One module under two names is one layer, not two.
        mine = self.modules.get(layer.path)
        others = [name for name in others if self.modules.get(name.rpartition(".")[0]) is not mine]
        if not others:
            return layer
        return dataclasses.replace(layer, tied=True, note=f"shares its weight with {', '.join(others)}")


def _hooks(module: nn.Module) -> list[object]:
    """A module's forward hooks of both kinds."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def _singles_out(tensor: Tensor) -> bool:
    """Whether it is one vector whose entries differ in size."""
    if tensor.is_meta or max(tensor.shape, default=0) != tensor.numel():
        return False
    sizes = tensor.detach().abs()
    return bool(sizes.max() > sizes.min())
