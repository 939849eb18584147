"""Inputs to run a network on when only shapes matter."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from unbackdoor.errors import SettingError
from unbackdoor.graph.modules import is_batch_norm, unwrap

#: Tried in this order where no example is given: the sizes that image networks are built for.
_SIZES = (224, 256, 32, 64, 299, 384, 28)


def check_example(model: nn.Module, example: Any) -> None:
    """SettingError where a network's forward pass cannot be called with what the user gave: an input too many."""
    if example is None:
        return
    _, inner = unwrap(model)
    try:
        signature = inspect.signature(inner.forward)
    except (TypeError, ValueError):  # compiled code that has none
        return
    reason = ""
    for args, kwargs in examples(inner, example):
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            reason = reason or str(error)
        else:
            return
    raise SettingError(
        f"--input (example=...): expected what {type(inner).__name__}.forward{signature} takes, "
        f"got {_counted(example)}: {reason}"
    )


def _counted(example: Any) -> str:
    count = len(example) if isinstance(example, (tuple, list, Mapping)) else 1
    return "1 input" if count == 1 else f"{count} inputs"


def examples(model: nn.Module, example: Any = None) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Positional and keyword inputs to try, one after the other.

    Args:
        example: what the user gave: an input, a tuple or list of inputs, or a mapping of inputs by keyword. A list may
            be one input too, as detectors take it.
    """
    if example is not None:
        if isinstance(example, Mapping):
            yield (), dict(example)
        elif isinstance(example, list):
            yield tuple(example), {}
            yield (example,), {}
        else:
            yield (example if isinstance(example, tuple) else (example,)), {}
        return
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    module = next((m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))), None)

    def zeros(*shape: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.zeros(2, *shape, dtype=first.dtype, device=first.device),), {}

    if isinstance(module, nn.Linear):
        yield zeros(module.in_features)
        return
    channels, ndim = 3, 2
    if module is not None:
        channels, ndim = module.in_channels, len(module.kernel_size)
    config = getattr(model, "pretrained_cfg", None)  # timm says what a network is built for
    size = config.get("input_size") if isinstance(config, dict) else None
    if size:
        yield zeros(*size)
    for side in _SIZES if ndim == 2 else (64, 16):
        yield zeros(channels, *(side,) * ndim)


def norm_ranks(model: nn.Module, example: Any = None) -> Callable[[str], int | None]:
    """A function from a BatchNorm's path to the number of dimensions of what it is called on.

    It runs the network once, the first time it is asked, on the meta device: shapes without values. None where that
    fails, or where the norm is never called.
    """

    seen: dict[str, int] = {}

    @functools.cache
    def run() -> None:
        _, inner = unwrap(model)
        tensors = {**dict(inner.named_parameters()), **dict(inner.named_buffers())}
        bare = {name: tensor.to("meta") for name, tensor in tensors.items()}
        hooks = []
        for path, module in model.named_modules():
            if is_batch_norm(module):

                def note(_module: nn.Module, args: tuple[Any, ...], path: str = path) -> None:
                    seen[path] = args[0].ndim

                hooks.append(module.register_forward_pre_hook(note))
        for args in examples(inner, example):
            seen.clear()
            try:
                with torch.no_grad():
                    torch.func.functional_call(inner, bare, *tree_map_only(Tensor, lambda t: t.to("meta"), args))
                break
            except Exception:  # a shape that does not fit, or code that needs values
                seen.clear()
        for hook in hooks:
            hook.remove()

    def rank(path: str) -> int | None:
        run()
        return seen.get(path)

    return rank
