"""What a forward pass does, written down while it happens: the truth that the layer graph is compared with.

Nothing here knows the package. Hooks say which module put a tensor out and which norm was called on that very object,
and a dispatch mode says which kernels read its values: reading a shape is no kernel, and what hands a tensor on
unchanged (Identity, dropout in eval mode) hands on the same object.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Kernels that take a tensor for its shape and type alone.
_SHAPE_KERNELS = ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "new_")
#: Kernels that a weight goes into as it is stored.
_PRODUCTS = ("convolution", "linear", "t", "addmm", "mm")


@dataclass
class Truth:
    """What was seen.

    Attributes:
        fed: norm -> the layer that alone feeds it and that it alone reads.
        norms: every norm with running statistics that was called.
        layers: every convolution and Linear that was called.
        computed: those of them whose weight is computed before use, so that the stored one has no meaning by itself.
    """

    fed: dict[str, str] = field(default_factory=dict)
    norms: set[str] = field(default_factory=set)
    layers: set[str] = field(default_factory=set)
    computed: set[str] = field(default_factory=set)


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.kept: list[Any] = []  # so that no identity is used twice
        self.maker: dict[int, str] = {}  # tensor -> layer that put it out
        self.made: dict[str, list[int]] = defaultdict(list)  # layer -> tensors
        self.read: dict[int, set[str]] = defaultdict(set)  # tensor -> norms that read it, "" for anything else
        self.inputs: dict[str, set[int]] = defaultdict(set)  # norm -> tensors that it was called on
        self.weight_kernel: dict[int, str] = {}  # weight -> the first kernel that reads it
        self.running: list[tuple[str, int]] = []  # norms under way, and on which tensor
        self.weights = {id(m._parameters["weight"]) for m in model.modules() if "weight" in m._parameters}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if not name.startswith(_SHAPE_KERNELS):
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor):
                    self._note(id(tensor), name)
        return func(*args, **(kwargs or {}))

    def _note(self, tensor: int, kernel: str) -> None:
        if tensor in self.weights:
            self.weight_kernel.setdefault(tensor, kernel)
        if tensor in self.maker:
            norm = next((path for path, source in self.running if source == tensor), "")
            self.read[tensor].add(norm)

    def enter_norm(self, path: str, source: Tensor) -> None:
        self.kept.append(source)
        self.inputs[path].add(id(source))
        self.running.append((path, id(source)))

    def leave_layer(self, path: str, result: Tensor) -> None:
        self.kept.append(result)
        self.maker[id(result)] = path
        self.made[path].append(id(result))


def is_layer(module: nn.Module) -> bool:
    return isinstance(module, (_ConvNd, nn.Linear))


def is_norm(module: nn.Module) -> bool:
    """A BatchNorm that keeps statistics, torchvision's frozen one included."""
    kind = isinstance(module, _BatchNorm) or type(module).__name__ == "FrozenBatchNorm2d"
    return kind and module.running_var is not None


@torch.no_grad()
def watch(model: nn.Module, *inputs: Any) -> Truth:
    """Run a network in eval mode once and write down what happened."""
    seen = _Recorder(model)
    hooks = []
    for path, module in model.named_modules():
        if is_layer(module):
            hooks.append(module.register_forward_hook(lambda m, i, o, path=path: seen.leave_layer(path, o)))
        elif is_norm(module):
            hooks.append(module.register_forward_pre_hook(lambda m, i, path=path: seen.enter_norm(path, i[0])))
            hooks.append(module.register_forward_hook(lambda m, i, o: seen.running.pop() and None))
    try:
        with seen:
            output = model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for tensor in tree_leaves(output):
        if isinstance(tensor, Tensor):
            seen.read[id(tensor)].add("")
    truth = Truth(norms=set(seen.inputs), layers=set(seen.made))
    for norm, sources in seen.inputs.items():
        makers = {seen.maker.get(source, "") for source in sources}
        layer = min(makers)
        if len(makers) == 1 and layer and all(seen.read[made] <= {norm} for made in seen.made[layer]):
            truth.fed[norm] = layer
    for path in truth.layers:
        weight = model.get_submodule(path)._parameters.get("weight")
        if seen.weight_kernel.get(id(weight)) not in _PRODUCTS:
            truth.computed.add(path)
    return truth
