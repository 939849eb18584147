"""Check that a network can process a data set's images and that a device works, before time is spent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unbackdoor.data import DatasetSpec
from unbackdoor.errors import ArchitectureError, SettingError, first_line
from unbackdoor.outputs import described, part_of


def check_answer(
    model: nn.Module,
    spec: DatasetSpec,
    *,
    training: bool = False,
    name: str = "the network",
    output: str | None = None,
) -> None:
    """Run a network on two black images; its mode and all random generators are restored.

    Args:
        training: whether to run in training mode, which changes the running statistics.
        name: the network's name in messages.
        output: which part of its output is the logits (see `unbackdoor.outputs`).

    Raises:
        ArchitectureError: the network fails, or does not return one logit per class.
    """
    modes = {module: module.training for module in model.modules()}
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    images = torch.zeros(2, spec.channels, spec.size, spec.size, dtype=like.dtype, device=like.device)
    devices = [like.device] if like.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            answer = model.train(training)(images)
    except Exception as error:
        raise ArchitectureError(
            f"{name} cannot process the {spec.size}x{spec.size} {'grey ' if spec.channels == 1 else ''}images of "
            f"{spec.title}: {first_line(error)}; choose another network{_other_channels(model, spec)}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    where = " in training" if training else ""
    if output is not None:
        answer = part_of(answer, output)
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 2:
        raise ArchitectureError(
            f"{name}: expected logits of shape (2, classes) for two images{where}, got {described(answer)}"
        )
    if answer.shape[1] != spec.num_classes:
        raise ArchitectureError(
            f"{name}: expected the {spec.num_classes} classes of {spec.title}, got {answer.shape[1]}; choose another "
            "network or data set"
        )


def check_device(device: str) -> None:
    """SettingError if tensors cannot be put on `device`."""
    try:
        torch.empty(1, device=device).item()
    except Exception as error:
        raise SettingError(f"device {device!r} cannot be used here: {first_line(error)}") from error


def _other_channels(model: nn.Module, spec: DatasetSpec) -> str:
    """The hint to use other images, if a network for colour images gets grey ones, or the other way round."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels == spec.channels or first.in_channels not in (1, 3):
        return ""
    return f", or images of {first.in_channels} (channels = {first.in_channels} in a data.toml)"
