"""`layer_graph`: by torch.fx, by torch.export where fx cannot follow, and by names and order where neither can."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from unbackdoor.errors import GraphError
from unbackdoor.graph import export, fx, names
from unbackdoor.graph.layer import LayerGraph
from unbackdoor.graph.owners import Owners


def layer_graph(model: nn.Module, example: Any = None) -> LayerGraph:
    """Find which norm follows which layer.

    Args:
        model: any module; it is traced in eval mode, and its mode is restored.
        example: an input, or a tuple of inputs, for networks that torch.fx cannot follow: torch.export needs one, and
            without it tries the usual image sizes. With it, torch.export is asked first, since shapes are then known.

    Returns:
        A graph; what could not be read or paired is listed in `uncovered`.

    Raises:
        GraphError: the model holds lazy modules without weights.
    """
    if not isinstance(model, nn.Module):
        raise GraphError(f"expected a torch.nn.Module, got {type(model).__name__}")
    owners = Owners(model)
    failures = []
    best: LayerGraph | None = None
    tracers = (fx.trace, lambda m, o: export.trace(m, o, example))
    with evaluating(model):
        for tracer in tracers if example is None else reversed(tracers):
            try:
                flow = tracer(model, owners)
            except GraphError:
                raise
            except Exception as error:  # tracers fail in every way there is
                failures.append(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
                continue
            graph = flow.graph(owners.aliases, owners.remarks(flow))
            if best is None or len(graph.uncovered) < len(best.uncovered):
                best = graph
            if not best.uncovered:
                return best
    return best or names.of_module(owners, "; ".join(failures))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every module's own mode comes back, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
