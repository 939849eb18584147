"""The ways to read a network's layers, in order: torch.fx, torch.export, and names where neither can follow.

A tracer gives the way of the values through a network; a new one is a file here, and its place in `TRACERS`.
"""

from typing import Any, Protocol

from torch import nn

from unbackdoor.graph.dataflow import Dataflow
from unbackdoor.graph.owners import Owners
from unbackdoor.graph.readers import export, fx


class Tracer(Protocol):
    """Follows a network that is in eval mode; raises whatever it likes where it cannot."""

    def __call__(self, model: nn.Module, owners: Owners, example: Any = None, /) -> Dataflow: ...


#: The quickest first; with an example of the input, the one that sees shapes goes before the one that does not.
TRACERS: tuple[Tracer, ...] = (fx.trace, export.trace)
