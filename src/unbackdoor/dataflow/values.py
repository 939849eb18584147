"""Which op's result each node of a traced program stands for, also after something was written into it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from torch import fx

from unbackdoor.dataflow.effects import MOVES, canonical
from unbackdoor.dataflow.flow import Dataflow

_VIEWS = MOVES | {"detach", "alias", "contiguous", "expand", "expandas", "broadcastto"}


class Values:
    """The results of the calls seen so far.

    Args:
        flow: the calls.
        tensors: names of the network's own.
    """

    def __init__(self, flow: Dataflow, tensors: Collection[str]) -> None:
        self._flow = flow
        self._tensors = tensors
        self.numbers: dict[fx.Node, int] = {}
        self.written: dict[str, int] = {}  # tensors of the network that data were written into

    def __call__(self, value: Any) -> tuple[int, ...]:
        """The ops whose values are in an argument; none for constants, sizes and parameters."""
        found = (self.numbers[node] for node in nodes_in(value) if node in self.numbers)
        return tuple(number for number in found if self._flow.varies(number))

    def write(self, node: fx.Node) -> None:
        """A call wrote into its first argument: whoever reads that from here on reads the result.

        Raises:
            TypeError: it is a tensor that the forward pass made, of whose other views torch.fx knows nothing.
        """
        into = node.args[0] if node.args else None
        if not isinstance(into, fx.Node):
            return
        for whole in (into, *viewed(into)):
            name = str(whole.target) if whole.op == "get_attr" else None
            if name is not None and name not in self._tensors:
                raise TypeError("the network writes into a tensor that it creates, which torch.fx does not track")
            earlier = self.numbers.get(whole) if name is None else self.written.get(name)
            made = self.numbers[node]
            if whole is not into and earlier is not None:
                made = self._flow.join((earlier, made))
            self.numbers[whole] = made
            if name is not None:
                self.written[name] = made


def nodes_in(value: Any) -> Iterator[fx.Node]:
    """The nodes in an argument, nested lists and slices included."""
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from nodes_in(item)
    elif isinstance(value, dict):
        yield from nodes_in(tuple(value.values()))
    elif isinstance(value, slice):
        yield from nodes_in((value.start, value.stop, value.step))


def viewed(node: fx.Node) -> Iterator[fx.Node]:
    """What a value is a view of, if it is one: it changes when the view is written into."""
    while node.op.startswith("call_") and node.args and isinstance(node.args[0], fx.Node):
        target = getattr(node.target, "overloadpacket", node.target)
        if canonical(target if isinstance(target, str) else getattr(target, "__name__", "")) not in _VIEWS:
            return
        node = node.args[0]
        yield node
