"""In which precision, and in which layout of its images, a network is computed fastest."""

from __future__ import annotations

import torch
import torch.nn as nn

#: Input channels from which on a strided 1x1 convolution is safe in channels_last.
_CHANNELS = 8


def training_dtype(device: torch.device, model: nn.Module) -> torch.dtype | None:
    """`autocast_dtype`, or None where `model` holds a layer whose bfloat16 backward pass is slow on a CPU.

    Depthwise convolutions, GroupNorm and attention have no fast one: a step took 1.5 to 2 times as long as in float32.
    """
    slow = device.type == "cpu" and any(map(_slow_backward, model.modules()))
    return None if slow else autocast_dtype(device)


def _slow_backward(module: nn.Module) -> bool:
    grouped = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups > 1
    attends = "attention" in type(module).__name__.lower()  # torch's, timm's and our own
    return grouped or attends or isinstance(module, nn.GroupNorm)


def layout(model: nn.Module) -> torch.memory_format:
    """channels_last, in which convolutions are fastest, or contiguous for a network that is not safe in it.

    torch 2.14.1 writes outside its memory in the backward pass of a channels_last 1x1 convolution with a stride and 2
    to 7 input channels, on CPUs without AVX512. Only `nn.Conv2d` is seen, not F.conv2d. Groups that narrow count, too,
    though none was seen to fail.
    """
    return torch.contiguous_format if any(map(_unsafe, model.modules())) else torch.channels_last


def _unsafe(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return False
    strided = max(module.kernel_size) == 1 and max(module.stride) > 1
    return strided and module.in_channels // module.groups < _CHANNELS


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the hardware multiplies it faster than float32, else None.

    On CPUs without AMX or AVX512-BF16 a bfloat16 convolution is emulated, ten times slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    capability = torch.backends.cpu.get_cpu_capability()
    fast = capability.startswith("AVX512") and _cpu_has("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return torch.bfloat16 if fast else None


def _cpu_has(*features: str) -> bool:
    return any(getattr(torch.cpu, feature, lambda: False)() for feature in features)
