"""One call of a traced network, in a form that every tracer can produce."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unbackdoor.dataflow.effects import NO_EFFECT, Effect

Kind = Literal[
    "input", "layer", "weights", "norm", "input_norm", "own_norm", "alias", "shape", "other", "opaque", "output"
]


@dataclass(frozen=True)
class Op:
    """One call.

    Attributes:
        kind: "alias" hands its first input on unchanged; "shape" reads sizes, not values; "input_norm" is a norm whose
            factor depends on its input, and "own_norm" one whose factor does not, but cannot be read;
            "weights" is a layer that cannot be read; "opaque" cannot be looked into.
        inputs: the numbers of the ops whose results it reads.
        path: of the layer or norm; for the other norms the type's name.
        effect: of "other": what it makes of zeros.
    """

    kind: Kind
    inputs: tuple[int, ...] = ()
    path: str = ""
    effect: Effect = NO_EFFECT
