"""Which norm follows which Linear or convolution, as a value: read from the dataflow, never guessed."""

from unbackdoor.graph.read import layer_graph

__all__ = ["layer_graph"]
