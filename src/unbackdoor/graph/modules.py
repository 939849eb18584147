"""What a single module is: a layer, a norm, or neither; and under which names its tensors are stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from unbackdoor.findings.layers import Layer, Norm

#: Norms whose factor depends on the input, so that it cannot be folded into a weight.
INPUT_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, _InstanceNorm)


#: Norms that keep statistics but are no BatchNorm subclass, by name: torchvision's and detectron2's.
_FROZEN = "FrozenBatchNorm2d"

#: What implementers call a Linear that holds query, key and value one behind the other.
_PACKED = ("qkv", "qkv_proj", "to_qkv", "query_key_value", "c_attn")

_RECURRENT = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear)


def join(path: str, name: str) -> str:
    """`path.name`, or `name` for the network itself."""
    return f"{path}.{name}" if path else name


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a convolution or Linear of torch's, or a subclass."""
    return isinstance(module, (_ConvNd, nn.Linear))


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm, with or without running statistics."""
    return isinstance(module, _BatchNorm) or is_frozen(module)


def is_frozen(module: nn.Module | None) -> bool:
    """Whether a module is a norm that is no BatchNorm subclass."""
    return type(module).__name__ == _FROZEN


def is_unreadable(module: nn.Module) -> bool:
    """Whether a module holds weights that no rule here can score: recurrent, bilinear, quantised, or in TorchScript."""
    quantised = ".quantized" in type(module).__module__ and hasattr(module, "weight")
    script = isinstance(module, torch.jit.ScriptModule) and any(True for _ in module.parameters(recurse=False))
    return isinstance(module, _RECURRENT) or quantised or script


def runs_torch_forward(module: nn.Module) -> bool:
    """Whether a layer or norm computes what its base class does, with its own weight (not, say, a standardised one)."""
    cls = type(module)
    base = next(c for c in cls.__mro__ if c.__module__.startswith("torch.nn.") and not c.__name__.startswith("Param"))
    steps = ("forward", "_conv_forward")
    return all(getattr(cls, step, None) is getattr(base, step, None) and step not in vars(module) for step in steps)


def unwrap(module: nn.Module) -> tuple[str, nn.Module]:
    """What a wrapper that computes nothing of its own wraps, and under which name: data parallelism, torch.compile."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    name = "module" if isinstance(module, wrappers) else "_orig_mod"
    if not isinstance(module, wrappers) and type(module).__name__ != "OptimizedModule":
        return "", module
    path, inner = unwrap(module.get_submodule(name))
    return join(name, path) if path else name, inner


def read_layer(module: nn.Module, path: str, rule: str) -> Layer:
    """Describe a convolution or Linear."""
    assert isinstance(module, (_ConvNd, nn.Linear))
    linear = isinstance(module, nn.Linear)
    out = int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)
    weight, gain, parametrization = _weight_names(module, path)
    bias = "bias" in module._parameters or "bias" in module._buffers
    if not bias and getattr(module, "bias", None) is not None:
        gain, parametrization = None, "other"  # a computed bias would outlive a filter of zeros
    packed = linear and path.rpartition(".")[2] in _PACKED and out % 3 == 0
    return Layer(
        path=path,
        kind=_kind(module),
        out_channels=out,
        rule=rule,
        weight=weight,
        gain=gain,
        parametrization=parametrization,
        bias=join(path, "bias") if bias and module.bias is not None else None,
        groups=1 if isinstance(module, nn.Linear) else module.groups,
        transposed=isinstance(module, _ConvTransposeNd),
        blocks=3 if packed else 1,
    )


def read_attention(module: nn.MultiheadAttention, path: str, rule: str) -> list[Layer]:
    """The packed input projection of torch's attention (or its three separate ones), and the output projection."""
    bias = join(path, "in_proj_bias") if module.in_proj_bias is not None else None
    size = int(module.embed_dim)

    def layer(name: str, weight: str, blocks: int, shared_bias: str | None) -> Layer:
        return Layer(
            path=join(path, name),
            kind="MultiheadAttention",
            out_channels=size * blocks,
            rule=rule,
            weight=join(path, weight),
            bias=shared_bias,
            blocks=blocks,
        )

    if module.in_proj_weight is not None:
        inputs = [layer("in_proj", "in_proj_weight", 3, bias)]
    else:  # one third of the bias belongs to each, which no edit here can name: it is left as it is
        inputs = [layer(f"{letter}_proj", f"{letter}_proj_weight", 1, None) for letter in "qkv"]
    return [*inputs, read_layer(module.out_proj, join(path, "out_proj"), rule)]


def read_norm(module: nn.Module, path: str) -> Norm | None:
    """Describe a BatchNorm; None where it has no running statistics and so depends on the batch."""
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        return None
    return Norm(
        path=path,
        channels=len(mean),
        weight=join(path, "weight") if isinstance(getattr(module, "weight", None), Tensor) else None,
        bias=join(path, "bias") if isinstance(getattr(module, "bias", None), Tensor) else None,
        mean=join(path, "running_mean"),
        var=join(path, "running_var"),
        eps=float(getattr(module, "eps", 1e-5)),
    )


def effective_weight(module: nn.Module) -> Any:
    """The weight that a forward pass in eval mode uses, parametrizations computed."""
    for hook in module._forward_pre_hooks.values():  # weight_norm and spectral_norm of the older kind
        if getattr(hook, "name", None) == "weight" and hasattr(hook, "compute_weight"):
            if type(hook).__name__ == "SpectralNorm":
                return hook.compute_weight(module, do_power_iteration=False)
            return hook.compute_weight(module)
    return module.weight


def _kind(module: nn.Module) -> str:
    """The type's name; a parametrized type is called what it was."""
    return type(module).__name__.removeprefix("Parametrized").replace("NonDynamicallyQuantizable", "")


def _weight_names(module: nn.Module, path: str) -> tuple[str, str | None, str | None]:
    """(weight, gain, parametrization) for plain, weight-normed and otherwise computed weights."""
    if parametrize.is_parametrized(module, "weight"):
        chain = module.parametrizations["weight"]  # type: ignore[index]
        kind = type(chain[0]).__name__
        stem = join(path, "parametrizations.weight.original")
        if len(chain) == 1 and kind == "_WeightNorm" and chain[0].dim == 0:
            return stem + "1", stem + "0", "weight_norm"
        return (stem if hasattr(chain, "original") else stem + "0"), None, "other"
    if "weight_g" in module._parameters and "weight_v" in module._parameters:
        hook = next((h for h in module._forward_pre_hooks.values() if hasattr(h, "compute_weight")), None)
        if getattr(hook, "dim", None) == 0:
            return join(path, "weight_v"), join(path, "weight_g"), "weight_norm"
        return join(path, "weight_v"), None, "other"
    if "weight_orig" in module._parameters:
        return join(path, "weight_orig"), None, "other"
    return join(path, "weight"), None, None
