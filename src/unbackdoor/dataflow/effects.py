"""What an operation makes of a channel that is zero: one table for every tracer, by the operation's name.

"Pruned" means switched off. Whether a zeroed channel stays switched off behind an operation is the operation's affair:
relu(0) = 0, but sigmoid(0) = 0.5: what 0.5 is multiplied with is open by half, and a layer that reads it reads 0.5.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from torch import nn

from unbackdoor.dataflow.places import Place, across, contracted, moved

#: What an operation does with a value that is zero:
#: - "zero": makes zero of it;
#: - "bend": the same, by a function that is not linear;
#: - "joined": adds it to other values or channels: one that is zero is missing from the sum;
#: - "shift": adds a number to it;
#: - "open": makes something else of it, the same for every input, as a norm or a bias of the network's does;
#: - "constant": the same, by a function that is not linear and not zero at zero;
#: - "factor": multiplies it with other values: zero stays zero, and anything else is a factor of theirs;
#: - "sum": the same, and adds up its channels: one that is zero is missing from the sum;
#: - "gate": lets it decide about other values, so that zero is a decision too;
#: - "pole": divides by it, or takes its logarithm;
#: - "coupled": computes it together with its own statistics or with the channels beside it: zero does not stay zero, or
#:   those move;
#: - "ends": reads it with weights;
#: - "unknown": nobody knows.
Role = Literal[
    "zero", "bend", "joined", "shift", "open", "constant", "factor", "sum", "gate", "pole", "coupled", "ends", "unknown"
]

#: How the places of a result belong to those of what is read: one to one; channel by channel, or all together; moved.
Layout = Literal["point", "pool", "moved"]


@dataclass(frozen=True)
class Effect:
    """What one call does.

    Attributes:
        name: the operation's, for messages.
        roles: (number of the op that is read, what becomes of a zero in it).
        layout: of the result.
        place: along which axis of the result channels lie, where that is known.
        mixes: of the layout "pool": whether it runs along the channels; None if that is not known.
    """

    name: str = ""
    roles: tuple[tuple[int, Role], ...] = ()
    layout: Layout = "moved"
    place: Place | None = None
    mixes: bool | None = None


NO_EFFECT = Effect()


@dataclass(frozen=True)
class Call:
    """One call, as a tracer wrote it down.

    Attributes:
        name: the operation's.
        args, kwargs: what it was given.
        numbers: from an argument to the ops whose values are in it; none for constants, sizes and parameters.
        place: of an op's result.
        shapes: of the first argument and of the result, where they are known.
    """

    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    numbers: Callable[[Any], tuple[int, ...]]
    place: Callable[[int], Place | None] = lambda _: None
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @cached_property
    def data(self) -> tuple[int, ...]:
        """All ops whose values it reads."""
        values = (*self.args, *self.kwargs.values())
        return tuple(dict.fromkeys(n for value in values for n in self.numbers(value)))

    @cached_property
    def first(self) -> tuple[int, ...]:
        """The ops in its first argument."""
        return self.numbers(self.args[0]) if self.args else self.data[:1]

    def at(self, index: int, word: str) -> Any:
        """An argument, by position or by name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(word)

    def all(self, role: Role, layout: Layout = "moved") -> Effect:
        """Everything that is read plays one role."""
        return Effect(self.name, tuple((n, role) for n in self.data), layout)

    def main(self, role: Role, layout: Layout = "moved") -> Effect:
        """The first argument holds the values; others say which, where, or how much."""
        return Effect(self.name, tuple((n, role if n in self.first else "gate") for n in self.data), layout)


def effect(call: Call) -> Effect:
    """What a call makes of zeros in the values that it reads."""
    if not call.data:
        return Effect(call.name)
    plain = canonical(call.name)
    found = _TABLE[plain](call) if plain in _TABLE else call.all("unknown")
    places = [call.place(n) for n in call.data]
    place = moved(plain, call.args, call.kwargs, places, call.shapes, kept=found.layout == "point")
    return replace(found, place=place)


@functools.cache
def canonical(name: str) -> str:
    """One name for a module, a function, a method and a kernel: MaxPool2d, max_pool2d -> maxpool; mul_, imul -> mul."""
    plain = re.sub(r"[123]d$", "", name.strip("_").replace("_", "").lower())
    return plain[1:] if plain in _IN_PLACE - {"setitem"} else plain


def changes_in_place(name: str) -> bool:
    """Whether an operation writes into its first argument."""
    return name.strip("_") in _IN_PLACE or (name.endswith("_") and not name.startswith("__"))


def of_module(module: nn.Module, args: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
    """The function that a module without weights stands for, and its arguments."""
    settings = next((names for kind, names in _SETTINGS.items() if isinstance(module, kind)), ())
    return type(module).__name__, (*args, *(getattr(module, name) for name in settings))


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Linear, each place by itself.
_LINEAR = _names(
    "neg negative positive nantonum to type typeas float double half bfloat16 cpu cuda contiguous clone detach alias"
    " liftfresh liftfreshcopy tocopy zero identity dropout alphadropout featuredropout featurealphadropout"
    " stochasticdepth droppath quantstub dequantstub"
)
#: Curves through zero.
_BENDS = _names(
    "relu relu6 leakyrelu prelu rrelu elu celu selu gelu silu swish mish hardswish tanh tanhshrink hardshrink"
    " softshrink softsign sin sinh asin arcsin asinh arcsinh atan arctan atanh arctanh erf abs absolute sign sgn square"
    " sqrt expm1 log1p floor round ceil trunc frac long int bool"
)
_POINT = _LINEAR | _BENDS
#: Curves that miss zero, and their value there where they have but one.
AT_ZERO = {
    **dict.fromkeys(("sigmoid", "hardsigmoid", "expit", "specialexpit"), "0.5"),
    **dict.fromkeys(("exp", "exp2", "cos", "cosh", "sinc", "erfc"), "1"),
    **dict.fromkeys(("acos", "arccos"), "1.57"),
    "logsigmoid": "-0.69",
}
_MISSES = frozenset(AT_ZERO) | _names(
    "softplus heaviside gt lt ge le eq ne greater less greaterequal lessequal equal noteq logicalnot not invert"
    " bitwisenot"
)
_OPEN = _names("isnan isinf isfinite fill normal uniform bernoulli")
#: What is computed of several places, and keeps what is added to all of them.
_POOL = _names(
    "mean sum nansum avgpool maxpool adaptiveavgpool adaptivemaxpool fractionalmaxpool maxpoolwithindices amax amin"
    " aminmax median var std varmean stdmean lppool norm vectornorm linalgvectornorm linalgnorm cumsum normalize"
    " interpolate upsample upsamplenearest upsamplebilinear upsamplebicubic upsamplelinear upsampletrilinear"
    " upsamplenearestexact expand expandas broadcastto upsamplingbilinear upsamplingnearest"
    " rfft rfftn rfft2 irfft irfft2 irfftn fft fft2 fftn ifft ifft2 ifftn fftrfft2 fftirfft2 reduce"
)
#: Along the channels each of them adds up, so that one that is zero is missing.
_SUMS = _names("mean sum nansum avgpool adaptiveavgpool lppool norm vectornorm linalgvectornorm linalgnorm")
#: Along the channels a zero may win or lose against the others, or moves them.
_TOGETHER = _names(
    "maxpool adaptivemaxpool fractionalmaxpool maxpoolwithindices amax amin aminmax max min median var std varmean"
    " stdmean cumsum normalize"
)
_LENGTHS = _names("norm vectornorm linalgvectornorm linalgnorm lppool")
#: What divides by a value's own length, or multiplies by something made of it.
NORMALISES = _names("normalize rmsnorm localresponsenorm cosinesimilarity div divide truediv truedivide mul multiply")
#: Those of one place and its neighbours, and those that never run along channels.
_WINDOWS = _names(
    "avgpool maxpool adaptiveavgpool adaptivemaxpool lppool fractionalmaxpool maxpoolwithindices upsamplenearest"
    " upsamplebilinear upsamplebicubic upsamplelinear upsampletrilinear upsamplenearestexact interpolate upsample"
    " upsamplingbilinear upsamplingnearest expand expandas broadcastto"
)
#: A number up to this one keeps a root or a quotient finite, and is as good as zero.
_TINY = 1e-4
#: The first argument's values at other places; another argument with values says which, as an index does.
MOVES = _names(
    "view reshape reshapeas viewas permute transpose t adjoint flatten unflatten ravel squeeze unsqueeze"
    " repeat repeatinterleave tile chunk split splitwithsizes tensorsplit unbind narrow roll flip"
    " fliplr flipud rot90 unfold fold im2col col2im movedim moveaxis swapaxes swapdims pixelshuffle pixelunshuffle"
    " channelshuffle diagonal asstrided getattr getitem slice select index gather indexselect take takealongdim"
    " maskedselect zeropad reflectionpad replicationpad circularpad viewasreal viewascomplex triu tril rearrange real"
    " imag conj maxunpool roialign roipool psroialign psroipool gridsample gridsampler patchmergingpad"
)
_JOIN = _names("cat concat concatenate stack hstack vstack dstack columnstack blockdiag meshgrid addshortcut")
_PLUS = _names("add sub subtract radd rsub")
_TIMES = _names("mul multiply rmul")
_OVER = _names("div divide truedivide truediv floordiv floordivide remainder fmod mod")
_PRODUCT = _names(
    "matmul mm bmm einsum tensordot inner mv dot outer ger kron addmm baddbmm addbmm addmv chainmatmul multidot cross"
)
#: Where a zero wins or loses against other values, weighs something, or points somewhere.
_DECIDE = _names(
    "softmax logsoftmax softmin gumbelsoftmax glu argmax argmin argsort sort topk kthvalue mode nonzero nms batchednms"
    " unique searchsorted bucketize onehot embedding embeddingbag prod cumprod cummax cummin logcumsumexp logsumexp"
    " affinegrid affinegridgenerator histc bincount multinomial all any item getrelativepositionbias addcmul addcdiv"
)
_POLES = _names("log log2 log10 logit reciprocal rsqrt digamma lgamma")
#: Those that compare two values, so that a zero may win over the other.
_RIVALS = _names("maximum minimum fmax fmin logicaland logicalor logicalxor and or xor bitwiseand bitwiseor")
#: Operators that change their first argument.
_IN_PLACE = _names("iadd isub imul itruediv ifloordiv imatmul ipow imod iand ior ixor setitem")
#: Modules and functions of attention and transformers whose inside is known to hold no gate.
KNOWN_INSIDE = _names(
    "multiheadattention multiheadattentionforward transformer transformerencoder transformerdecoder"
    " transformerencoderlayer transformerdecoderlayer shiftedwindowattention"
)

#: What leaves one row one class: pointwise, a choice among rows, other places. What merges places is in FLATTENS, too.
ROW_BY_ROW = (
    _POINT
    | _MISSES
    | _OPEN
    | _names("threshold")
    | MOVES
    | _JOIN
    | _names(
        "add radd mul multiply rmul div divide truedivide truediv clamp clampmin clampmax hardtanh softmax logsoftmax"
    )
    | _names("argmax topk sort max amax mean avgpool adaptiveavgpool adaptivemaxpool interpolate upsample where pad")
)
FLATTENS = _names("mean avgpool adaptiveavgpool adaptivemaxpool amax max flatten squeeze view reshape select getitem")

_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Hardtanh: ("min_val", "max_val"),
    nn.Threshold: ("threshold", "value"),
    nn.modules.padding._ConstantPadNd: ("value",),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _is_zeros(value: Any) -> bool:
    """Whether an argument is zero, or a tensor that was made as zeros."""
    if _is_number(value):
        return bool(value == 0)
    target = getattr(value, "target", None)
    target = getattr(target, "overloadpacket", target)
    return canonical(target if isinstance(target, str) else getattr(target, "__name__", "")) in _ZEROS


_ZEROS = _names("zeros zeroslike newzeros")


def _alone(role: Role) -> Callable[[Call], Effect]:
    return lambda call: call.all(role, "point" if len(call.data) == 1 else "moved")


def _pool(call: Call) -> Effect:
    """Of several places: each channel by itself, or along the channels."""
    plain = canonical(call.name)
    known, axes = _axes(call, plain)
    found = [across(call.place(n), axes) if known else None for n in call.first]
    mixes = True if True in found else None if None in found or not found else False
    role: Role = "bend" if plain in _LENGTHS else "zero"
    if plain in _TOGETHER and (mixes or (mixes is None and plain in ("normalize", "cumsum"))):
        role = "coupled"
    elif plain in _SUMS and mixes:
        role = "joined"
    return replace(call.main(role, "pool"), mixes=mixes)


def _axes(call: Call, plain: str) -> tuple[bool, tuple[int, ...] | None]:
    """Whether it is known along which axes an operation runs, and which; None if along all."""
    if plain in _WINDOWS:
        size = re.search(r"([123])d", call.name)
        return True, tuple(range(-int(size[1]), 0)) if size else ()
    if "fft" in plain or plain == "reduce":
        return False, None
    late = plain in _LENGTHS or plain == "normalize"
    axes = call.at(2 if late else 1, "dim")
    if axes is None:
        axes = call.kwargs.get("axis", 1 if plain == "normalize" else None)
    if axes is None or isinstance(axes, bool) or axes in ([], ()):  # torch.var has `unbiased` in this place
        return True, None
    axes = axes if isinstance(axes, (list, tuple)) else (axes,)
    return all(isinstance(axis, int) for axis in axes), tuple(axes)


def _plus(call: Call) -> Effect:
    """Of two values each is missing from the sum where it is zero; a constant is left."""
    if len(call.data) > 1:
        return call.all("joined", "point")
    numbers = [x for x in call.args[:2] if _is_number(x)]
    doubled = len(call.args) > 1 and call.numbers(call.args[0]) == call.numbers(call.args[1])
    if 0 in numbers or doubled:
        return call.all("zero", "point")
    return call.all("shift" if any(abs(x) > _TINY for x in numbers) else "open", "point")


def _times(call: Call) -> Effect:
    return call.all("zero" if len(call.data) == 1 else "factor", "point")


def _over(call: Call) -> Effect:
    poles = call.numbers(call.at(1, "other"))
    above: Role = "factor" if poles else "zero"
    return Effect(call.name, tuple((n, "pole" if n in poles else above) for n in call.data), "point")


def _power(call: Call) -> Effect:
    power = call.at(1, "exponent")
    if len(call.data) == 1 and _is_number(call.args[0]):
        return call.all("constant", "point")
    if len(call.data) > 1 or call.numbers(power):
        return call.all("gate")
    return call.all("bend" if _is_number(power) and power > 0 else "pole", "point")


def _product(call: Call) -> Effect:
    if len(call.data) == 1:
        return call.all("zero")
    places = {n: call.place(n) for n in call.data}
    summed = contracted(canonical(call.name), call.args, call.numbers, places)
    return Effect(call.name, tuple((n, "sum" if n in summed else "factor") for n in call.data))


def _attention(call: Call) -> Effect:
    """Query and key are multiplied and added up over their channels, values are averaged, a mask decides."""
    query, key, value = (call.numbers(call.at(i, word)) for i, word in enumerate(("query", "key", "value")))
    roles: list[tuple[int, Role]] = []
    for n in call.data:
        summed = n in query or n in key
        roles.append((n, "factor" if n in value else "sum" if summed else "gate"))
    return Effect(call.name, tuple(roles))


def _extreme(call: Call) -> Effect:
    """torch.max: of one value along an axis, or of two."""
    other = call.at(1, "other")
    return _pool(call) if other is None or isinstance(other, int) else _rivals(call)


def _clamp(call: Call) -> Effect:
    plain = canonical(call.name)
    low, high = call.at(1, "min"), call.at(2, "max")
    if plain == "clampmax":
        low, high = None, call.at(1, "max")
    if plain == "hardtanh":
        low, high = call.at(1, "min_val"), call.at(2, "max_val")
        low, high = (-1 if low is None else low), (1 if high is None else high)
    beside = max(low if _is_number(low) else 0, -high if _is_number(high) else 0)  # how far from zero it begins
    if beside > 0:
        return call.main("constant" if beside > _TINY else "open", "point")
    known = all(bound is None or _is_number(bound) for bound in (low, high))
    return call.main("bend" if known else "open", "point")


def _threshold(call: Call) -> Effect:
    """x where it is larger than a number, another number elsewhere."""
    least, other = call.at(1, "threshold"), call.at(2, "value")
    kept = _is_zeros(other) or (_is_number(least) and least < 0)
    return call.main("bend" if kept else "constant", "point")


def _where(call: Call) -> Effect:
    """torch.where(condition, a, b)."""
    if len(call.args) < 3:
        return call.all("gate")
    condition = call.numbers(call.args[0])
    filled = any(_is_number(x) and x != 0 for x in call.args[1:3])
    value: Role = "open" if filled else "factor" if condition else "zero"
    return Effect(call.name, tuple((n, "gate" if n in condition else value) for n in call.data), "point")


def _masked_fill(call: Call) -> Effect:
    value = call.at(2, "value")
    return call.main("zero" if _is_number(value) and value == 0 else "open", "point")


def _pad(call: Call) -> Effect:
    """Zeros beside the values, or something else; only a constant padding has a number last."""
    last = call.args[-1] if len(call.args) > 1 and _is_number(call.args[-1]) else call.kwargs.get("value")
    return call.main("open" if last else "zero")


def _lerp(call: Call) -> Effect:
    if len(call.data) == 1:
        return call.all("open", "point")
    weight = call.numbers(call.at(2, "weight"))
    value: Role = "factor" if weight else "zero"
    return Effect(call.name, tuple((n, "gate" if n in weight else value) for n in call.data))


def _rivals(call: Call) -> Effect:
    """The larger of two, for example."""
    if len(call.data) > 1:
        return call.all("gate", "point")
    return call.all("bend" if any(_is_zeros(x) for x in call.args[:2]) else "constant", "point")


def _write(call: Call) -> Effect:
    """Values are put among others: setitem(x, where, values), copy_(x, values)."""
    late = canonical(call.name) in ("setitem", "indexput")
    kept = {*call.first, *call.numbers(call.at(2 if late else 1, "values"))}
    return Effect(call.name, tuple((n, "zero" if n in kept else "gate") for n in call.data))


def _relative_position(call: Call) -> Effect:
    """torchvision adds to attention's logits what the query makes of its place."""
    return Effect(call.name, tuple((n, "zero" if n in call.first else "factor") for n in call.data))


_TABLE: dict[str, Callable[[Call], Effect]] = {
    **dict.fromkeys(_LINEAR, lambda call: call.main("zero", "point")),
    **dict.fromkeys(_BENDS, lambda call: call.main("bend", "point")),
    **dict.fromkeys(_MISSES, _alone("constant")),
    **dict.fromkeys(_OPEN, _alone("open")),
    **dict.fromkeys(_POOL, _pool),
    **dict.fromkeys(("rmsnorm", "localresponsenorm"), lambda call: replace(call.main("coupled", "pool"), mixes=True)),
    "cosinesimilarity": lambda call: call.all("coupled"),
    **dict.fromkeys(MOVES, lambda call: call.main("zero")),
    "deformconv": lambda call: call.main("ends"),  # offsets and masks say where to look, and how much
    **dict.fromkeys(_JOIN, lambda call: call.all("zero")),
    **dict.fromkeys(_PLUS, _plus),
    **dict.fromkeys(_TIMES, _times),
    **dict.fromkeys(_OVER, _over),
    **dict.fromkeys(("pow", "power", "floatpower"), _power),
    **dict.fromkeys(_PRODUCT, _product),
    "scaleddotproductattention": _attention,
    **dict.fromkeys(("max", "min"), _extreme),
    **dict.fromkeys(("clamp", "clip", "clampmin", "clampmax", "hardtanh"), _clamp),
    "threshold": _threshold,
    "where": _where,
    "maskedfill": _masked_fill,
    **dict.fromkeys(("pad", "constantpad", "constantpadnd"), _pad),
    "lerp": _lerp,
    **dict.fromkeys(_RIVALS, _rivals),
    **dict.fromkeys(_DECIDE, lambda call: call.all("gate")),
    **dict.fromkeys(_POLES, lambda call: call.all("pole", "point")),
    **dict.fromkeys(("setitem", "copy", "indexput", "slicescatter", "selectscatter"), _write),
    "addrelpos": _relative_position,
}
