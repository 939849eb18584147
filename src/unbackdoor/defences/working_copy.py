"""A copy of a network to work on, and a while in which everything is drawn from one generator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from unbackdoor.errors import MethodError
from unbackdoor.prune import copy_model


def working_copy(model: nn.Module, name: str) -> nn.Module:
    """A float32 copy in eval mode, without the caller's hooks, all of whose weights can be trained."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise MethodError(
            f"{name} trains or masks a network's modules, which TorchScript does not allow; give the module"
        )
    work = copy_model(model).float().eval().requires_grad_(True)
    for module in work.modules():
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            for key, hook in list(hooks.items()):
                if not type(hook).__module__.startswith("torch.nn.utils."):
                    del hooks[key]
    flat = all(p.ndim != 5 for p in work.parameters())  # three-dimensional filters have a format of their own
    return work.to(memory_format=torch.channels_last) if flat else work


@contextlib.contextmanager
def seeded(generator: torch.Generator, model: nn.Module) -> Iterator[None]:
    """Dropout and the like draw from `generator` for a while; the global generators are put back."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), sdpa_kernel(SDPBackend.MATH):  # the one that derives twice
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield
