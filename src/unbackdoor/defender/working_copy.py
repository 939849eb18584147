"""A copy of a network to work on, and a while in which everything is drawn from one generator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from unbackdoor.errors import MethodError, SettingError
from unbackdoor.precision import layout
from unbackdoor.prune import copy_model


def working_copy(model: nn.Module, name: str) -> nn.Module:
    """A copy in float32 (or float64, as the network is) and eval mode, without the caller's hooks, all of whose weights
    can be trained.

    Raises:
        MethodError: the network is of a kind that cannot be trained or masked.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise MethodError(f"{name}: expected the network itself, got {type(model).__name__}; give its .module")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise MethodError(
            f"{name} trains or masks a network's modules, which TorchScript does not allow; give the module"
        )
    floating = [p for p in model.parameters() if p.is_floating_point()]
    if not floating:
        raise MethodError(f"{name}: expected a network with weights, this one has none")
    odd = next((key for key, value in model.state_dict().items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise MethodError(
            f"{name}: {odd} is no tensor (a quantised network, or an extra state), and cannot be repaired"
        )
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in floating) else torch.float32
    work = copy_model(model).to(dtype).eval()
    for parameter in work.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    for module in work.modules():
        hooked = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        for hooks in hooked:
            for key, hook in list(hooks.items()):
                if not type(hook).__module__.startswith("torch.nn.utils."):
                    del hooks[key]
    flat = all(p.ndim != 5 for p in work.parameters())  # three-dimensional filters have a format of their own
    return work.to(memory_format=layout(work)) if flat else work


@contextlib.contextmanager
def seeded(generator: torch.Generator | None, name: str) -> Iterator[None]:
    """Dropout and the like draw from `generator` for a while, and gradients are on; then all is as it was.

    Raises:
        SettingError: `generator` is none, or not on the CPU.
    """
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise SettingError(f"{name}: generator: expected a torch.Generator on the CPU, got {generator!r:.60}")
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with (
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=devices),
        sdpa_kernel(SDPBackend.MATH),  # the one that derives twice
    ):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield
