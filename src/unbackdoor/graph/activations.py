"""What a network's modules take in and give out in a forward pass: the one recorder that everything else uses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from torch import nn

#: Called with (path of the module, which call of it in this forward pass it is, from 0, the value).
See = Callable[[str, int, object], None]


@contextlib.contextmanager
def watched(model: nn.Module, paths: Iterable[str], see: See, *, side: Literal["input", "output"]) -> Iterator[None]:
    """Within, `see` is told what modules are given, or what they return; gradients go through.

    Args:
        model: a network; its hooks are as before at the end.
        paths: of the modules.
        see: called at each call of one of them.
        side: the first thing that a module is given, or what it returns.
    """
    calls: dict[str, int] = {}

    def start(_module: nn.Module, _inputs: object) -> None:
        calls.clear()

    def saw(path: str, value: object) -> None:
        call = calls[path] = calls.get(path, -1) + 1
        see(path, call, value)

    modules = dict(model.named_modules(remove_duplicate=False))
    handles = [model.register_forward_pre_hook(start, prepend=True)]
    try:
        for path in dict.fromkeys(paths):
            if side == "input":
                handles.append(modules[path].register_forward_pre_hook(_input_hook(path, saw), with_kwargs=True))
            else:
                handles.append(modules[path].register_forward_hook(_output_hook(path, saw)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input_hook(path: str, saw: Callable[[str, object], None]) -> Callable[..., None]:
    def hook(_module: nn.Module, inputs: tuple[object, ...], named: dict[str, object]) -> None:
        saw(path, inputs[0] if inputs else next(iter(named.values()), None))

    return hook


def _output_hook(path: str, saw: Callable[[str, object], None]) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: object, result: object) -> None:
        saw(path, result)

    return hook
