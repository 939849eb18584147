"""`layer_graph`: by torch.fx, by torch.export where fx cannot follow, and by names and order where neither can."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import textwrap
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unbackdoor.errors import GraphError
from unbackdoor.findings import Remark
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph.examples import check_example
from unbackdoor.graph.owners import Owners
from unbackdoor.graph.readers import TRACERS, names


def layer_graph(model: nn.Module, example: Any = None) -> LayerGraph:
    """Find which norm follows which layer.

    Args:
        model: any module; it is traced in eval mode and without its hooks, which are taken to observe only, and left
            as it was.
        example: an input, a tuple or list of inputs, or a mapping of inputs by keyword, for networks that torch.fx
            cannot follow: torch.export needs one, and without it tries the usual image sizes. With it, torch.export is
            asked first, since shapes are then known.

    Returns:
        A graph; what could not be read or paired is listed in `uncovered`.

    Raises:
        GraphError: `model` is no module, or holds lazy modules without weights.
        SettingError: its forward pass cannot be called with the example.
    """
    if not isinstance(model, nn.Module):
        raise GraphError(f"expected a torch.nn.Module, got {type(model).__name__}")
    owners = Owners(model)
    lazy = next((name for name, tensor in owners.tensors.items() if is_lazy(tensor)), None)
    if lazy is not None:
        raise GraphError(f"{lazy}: a lazy module without weights yet; run one batch through the network first")
    check_example(model, example)
    failures: list[str] = []
    best: LayerGraph | None = None
    for tracer in TRACERS if example is None else reversed(TRACERS):
        try:
            with observed(model):
                flow = tracer(model, owners, example)
        except Exception as error:  # tracers fail in every way there is
            message = textwrap.shorten(str(error).partition("\n")[0], 160, placeholder=" ...")
            failures.append(f"{type(error).__name__}: {message}")
            continue
        graph = owners.learnt(flow.graph(owners.aliases, owners.remarks(flow)))
        if best is None or len(graph.uncovered) < len(best.uncovered):
            best = graph
        if not flow.blind:
            break
    if best is not None and example is not None and best.layers and best.layers[0].rule == "fx" and failures:
        remark = Remark("*", "example", f"it was not used to read the network: {failures[0]}")
        best = dataclasses.replace(best, aside=(remark, *best.aside))
    if example is None:
        failures.append("an example of its input may help: example=..., --input 3x32x32")
    return best or names.of_module(owners, "; ".join(failures))


@contextlib.contextmanager
def observed(model: nn.Module) -> Iterator[None]:
    """Eval mode without hooks for a while; then everything that the modules hold is what it was before.

    A forward pass may count its calls or keep its features, and a tracer would leave its own placeholders in them.
    Hooks that compute a weight (weight_norm, pruning) belong to the network and stay.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    attributes = [dict(vars(module)) for module in modules]
    plain = (dict, OrderedDict, list, set)
    containers = [value for held in attributes for value in held.values() if type(value) in plain]
    contents = [copy.copy(value) for value in containers]
    try:
        model.eval()
        for module in modules:
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key, hook in list(hooks.items()):
                    if not type(hook).__module__.startswith("torch.nn.utils."):
                        del hooks[key]
            if vars(module).get("_compiled_call_impl") is not None:
                module._compiled_call_impl = None
            for name, value in vars(module).items():
                if isinstance(value, Tensor):  # neither parameter nor buffer: no tracer stands in for it
                    vars(module)[name] = value.clone()
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, held, mode in zip(modules, attributes, modes, strict=True):
            vars(module).clear()
            vars(module).update(held)
            if module.training != mode:  # kept elsewhere in TorchScript
                module.training = mode
        for value, content in zip(containers, contents, strict=True):
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)
