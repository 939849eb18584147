"""The answer to "which norm follows which layer", as a value: names only, no tensors and no modules.

Because it holds names alone, the same graph serves a network in memory and the tensors of a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from unbackdoor.findings import Remark

Part = Literal["hidden", "answer", "gate", "coupled", "constant", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution or Linear whose weight can be read.

    Attributes:
        path: its name in the network.
        kind: its type, for example "Conv2d", "ConvTranspose2d", "Linear", "MultiheadAttention".
        out_channels: number of output channels.
        norm: path of the BatchNorm that alone consumes its output, or None.
        behind: paths of BatchNorms that alone read what functions make of a convolution's output, or its norm's, each
            channel by itself, as behind an activation. They are part of the score, and of every edit, as `norm` is.
        rule: how that was found: "fx", "export", "arch" or "names".
        weight, bias: names of its tensors; the bias may be None.
        groups: of a grouped convolution.
        transposed: whether the weight is (in, out / groups, ...), as transposed convolutions keep it.
        blocks: number of equal parts of the output that mean different things: 3 for packed query, key and value.
        parametrization: "weight_norm" (`weight` is its direction, `gain` its length), "other" (the weight or the
            bias is computed and cannot be edited), or None.
        gain: name of the length tensor of weight_norm.
        tied: whether another layer uses the same weight tensor.
        part: what its channels are to the network. "hidden" channels can be switched off; the rows of an "answer" layer
            are what the network puts out; a "gate" multiplies other channels, so that zero does not switch it off;
            "coupled" channels are computed together, most often normalised by their own statistics, so that zero does
            not switch one off, or moves others; of the zero of a "constant" channel the next layer reads another number
            (sigmoid(0) = 0.5); "unknown" is not guessed. Only hidden channels are ever edited.
        why: of a part that is neither hidden nor an answer, how that was found, for a reader.
        note: what a reader of its scores should know.
    """

    path: str
    kind: str
    out_channels: int
    norm: str | None = None
    behind: tuple[str, ...] = ()
    rule: str
    weight: str
    bias: str | None = None
    groups: int = 1
    transposed: bool = False
    blocks: int = 1
    parametrization: str | None = None
    gain: str | None = None
    tied: bool = False
    part: Part = "hidden"
    why: str = ""
    note: str = ""

    @property
    def norms(self) -> tuple[str, ...]:
        """Paths of the norm that reads it, if there is one, and of those behind its activations."""
        return self.behind if self.norm is None else (self.norm, *self.behind)


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A BatchNorm with running statistics, which at test time is an affine map a channel.

    Attributes:
        path: its name in the network.
        channels: number of channels.
        weight, bias: names of gamma and beta; None without affine parameters.
        mean, var: names of the running statistics.
        eps: added to the variance.
        gain: name of a further factor on gamma, as ANP's networks keep one.
        part, why: as of a layer, where the norm's channels are meant: those of an answer or a gate are never pruned.
    """

    path: str
    channels: int
    weight: str | None
    bias: str | None
    mean: str
    var: str
    eps: float
    gain: str | None = None
    part: Part = "hidden"
    why: str = ""


def why_left(found: Layer | Norm) -> str:
    """Why channels that are not hidden ones are left unchanged, for a reader."""
    if found.part == "answer":
        rows = "rows" if isinstance(found, Layer) else "channels"
        return f"its {rows} are the network's answers, not hidden channels"
    if found.part == "gate":
        return f"it is a gate for other channels, and zero would not switch it off: {found.why}"
    if found.part == "constant":
        return f"zero would not switch its channels off: {found.why}"
    return found.why


@dataclass(frozen=True, kw_only=True)
class LayerGraph:
    """The layers of a network and the norm that follows each.

    Attributes:
        layers: in the order in which the network calls them.
        norms: every norm with running statistics, by path.
        unpaired_norms: paths of those that belong to no single layer.
        classifier: path of the layer whose rows are the network's classes, where there is exactly one, without a norm.
        no_classes: why the one layer of the outputs is none, for a reader.
        outputs: paths of all layers whose rows are answers: their results reach the network's output past no other.
        uncovered: layers and norms that could not be read or paired, and why.
        aside: what was read and plays no part (parameters outside every layer, modules that eval mode never calls).
        aliases: tensor name -> other names of the same tensor.
    """

    layers: tuple[Layer, ...]
    norms: Mapping[str, Norm]
    unpaired_norms: tuple[str, ...]
    classifier: str | None = None
    no_classes: str = ""
    outputs: tuple[str, ...] = ()
    uncovered: tuple[Remark, ...] = ()
    aside: tuple[Remark, ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __getitem__(self, path: str) -> Layer:
        """The layer called `path`; KeyError if there is none."""
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise KeyError(path)

    def norms_of(self, layer: Layer) -> tuple[Norm, ...]:
        """A layer's norms, in the order of its `norms`."""
        return tuple(self.norms[path] for path in layer.norms)

    @property
    def pairs(self) -> dict[str, str]:
        """Layer path -> norm path, for the layers that have one."""
        return {layer.path: layer.norm for layer in self.layers if layer.norm is not None}
