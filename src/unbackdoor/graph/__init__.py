"""Which norm follows which Linear or convolution, as a value: read from the dataflow, never guessed."""

from unbackdoor.graph.layer import Layer, LayerGraph, Norm, why_left
from unbackdoor.graph.read import layer_graph

__all__ = ["Layer", "LayerGraph", "Norm", "layer_graph", "why_left"]
