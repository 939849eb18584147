"""Whether a network can see a data set's images, and a device can be used: asked before hours are spent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unbackdoor.data import DatasetSpec
from unbackdoor.errors import ArchitectureError, SettingError
from unbackdoor.outputs import described, part_of


def check_answer(
    model: nn.Module,
    spec: DatasetSpec,
    *,
    training: bool = False,
    name: str = "the network",
    output: str | None = None,
) -> None:
    """Show a network two black images; its mode is restored, and no generator is touched.

    Args:
        training: in training mode, which moves the network's running statistics.
        name: what a reader calls it.
        output: which part of what it returns is its logits (see `unbackdoor.outputs`).

    Raises:
        ArchitectureError: it fails, or does not answer with one logit a class.
    """
    modes = {module: module.training for module in model.modules()}
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    images = torch.zeros(2, spec.channels, spec.size, spec.size, dtype=like.dtype, device=like.device)
    devices = [like.device] if like.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            answer = model.train(training)(images)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArchitectureError(
            f"{name} cannot see the {spec.size}x{spec.size} {'grey ' if spec.channels == 1 else ''}pixels of "
            f"{spec.title}: {reason}; choose another network{_other_channels(model, spec)}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    where = " in training" if training else ""
    if output is not None:
        answer = part_of(answer, output)
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 2:
        raise ArchitectureError(f"{name}: expected (2, classes) logits for two images{where}, got {described(answer)}")
    if answer.shape[1] != spec.num_classes:
        raise ArchitectureError(
            f"{name} tells {answer.shape[1]} classes apart, {spec.title} has {spec.num_classes}: give another network, "
            "or another data set"
        )


def check_device(device: str) -> None:
    """SettingError unless tensors can be put on `device`."""
    try:
        torch.empty(1, device=device).item()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingError(f"device {device!r} cannot be used here: {reason}") from error


def _other_channels(model: nn.Module, spec: DatasetSpec) -> str:
    """The other way out, where grey images meet a network for colour ones, or colour images one for grey ones."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels == spec.channels or first.in_channels not in (1, 3):
        return ""
    return f", or images of {first.in_channels} (channels = {first.in_channels} in a data.toml)"
