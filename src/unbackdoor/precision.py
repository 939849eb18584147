"""In which precision a network is computed fastest."""

from __future__ import annotations

import torch


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
