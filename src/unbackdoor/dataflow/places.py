"""Along which axis of a value the channels of the layer lie that it came from.

Attention needs it: q k' is summed over the channels of q and k, so that one that is zero is missing from the sum; where
it is summed over places instead, as attention between channels does, a zero is a weight like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_RESHAPES = frozenset(("view", "reshape", "reshapeas", "viewas", "flatten", "unflatten"))
_SWAPS = frozenset(("transpose", "swapaxes", "swapdims"))
_PARTS = frozenset(("chunk", "split", "splitwithsizes", "tensorsplit"))
_KEEPS = frozenset(("softmax", "normalize", "rmsnorm", "maxpool", "avgpool", "interpolate", "dropout"))


@dataclass(frozen=True)
class Place:
    """Where channels lie.

    Attributes:
        axis: counted from the end, so that -1 is the last; of channels that were split over several, the innermost.
        rank: how many axes there are, where that is known.
    """

    axis: int
    rank: int | None = None


def moved(
    plain: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    places: Sequence[Place | None],
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None,
    *,
    kept: bool,
) -> Place | None:
    """Where channels lie in an operation's result; None where that is not certain.

    Args:
        plain: the operation's canonical name.
        args, kwargs: what it was given.
        places: in the values that it reads.
        shapes: of the first of them and of the result, where known.
        kept: whether the result's places are the values' own.
    """
    if plain == "matmul" and len(places) == 2:
        return _of_product(*places)
    place = places[0]
    if place is None or any(other is None or other.axis != place.axis for other in places):
        return None
    if kept or plain in _KEEPS or (plain in _PARTS and len(places) == 1):
        return place
    rest = args[1:] if not kwargs else None
    if len(places) > 1 or rest is None:
        return None
    if plain in _RESHAPES:
        return _reshaped(place, rest, plain, shapes)
    if plain == "permute":
        return _permuted(place, rest)
    if plain in _SWAPS and len(rest) == 2:
        return _swapped(place, rest)
    if plain == "unbind" and rest in ((), (0,)):
        return Place(place.axis) if place.rank is None or place.rank + place.axis > 0 else None
    if plain == "getitem" and isinstance(rest[0], int):  # of several values, or the first axis of one
        return Place(place.axis) if place.rank is None or place.rank + place.axis > 0 else None
    return None


def across(place: Place | None, axes: tuple[int, ...] | None) -> bool | None:
    """Whether what runs along some axes of a value (None: all) runs along its channels; None if that is not known."""
    if axes is None:
        return True
    if not axes:
        return False
    if place is None:
        return None
    if place.rank is None and any(axis >= 0 for axis in axes):
        return True if place.axis in axes else None
    return place.axis in {axis if axis < 0 else axis - (place.rank or 0) for axis in axes}


def contracted(
    plain: str, args: Sequence[Any], numbers: Callable[[Any], tuple[int, ...]], places: Mapping[int, Place | None]
) -> set[int]:
    """The factors of a matrix product that it adds up along their channels."""
    if plain in ("matmul", "bmm", "mm") and len(args) == 2:
        axes = {args[0]: -1, args[1]: -2}
    elif plain == "einsum" and isinstance(args[0], str) and "." not in args[0]:
        factors = args[1] if isinstance(args[1], (list, tuple)) else args[1:]
        return _contracted_by_letters(args[0], [numbers(x) for x in factors], places)
    else:
        return set()
    return {n for value, axis in axes.items() for n in numbers(value) if (at := places.get(n)) and at.axis == axis}


def _contracted_by_letters(
    equation: str, factors: list[tuple[int, ...]], places: Mapping[int, Place | None]
) -> set[int]:
    inputs, _, output = equation.replace(" ", "").partition("->")
    found = set()
    for letters, numbers in zip(inputs.split(","), factors, strict=False):
        for n in numbers:
            at = places.get(n)
            if at and -at.axis <= len(letters) and letters[at.axis] not in output:
                found.add(n)
    return found


def _of_product(left: Place | None, right: Place | None) -> Place | None:
    """The channels that a matrix product does not add up."""
    if right is not None and right.axis == -1 and (left is None or left.axis == -1):
        return Place(-1, right.rank)
    if left is not None and left.axis == -2 and (right is None or right.axis == -2):
        return Place(-2, left.rank)
    return None


def _reshaped(
    place: Place, rest: Sequence[Any], plain: str, shapes: tuple[tuple[int, ...], tuple[int, ...]] | None
) -> Place | None:
    if shapes is not None:
        return _by_shapes(place, *shapes)
    if plain == "flatten":
        start = rest[0] if rest and isinstance(rest[0], int) else 0
        if place.rank is None or len(rest) > 1 or not start > 0 or place.rank + place.axis >= start:
            return None
        return Place(place.rank + place.axis - start - 1, start + 1)
    if place.axis != -1 or not rest:
        return None
    sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], (list, tuple)) else rest
    if isinstance(sizes[-1], int) and sizes[-1] == 1:
        return None
    return Place(-1, len(sizes) if plain in ("view", "reshape") and len(sizes) > 1 else None)


def _by_shapes(place: Place, before: tuple[int, ...], after: tuple[int, ...]) -> Place | None:
    """The innermost axis of the result that steps through the channels."""
    if place.axis < -len(before) or before[place.axis] == 1:
        return None
    inner, channels = 1, before[place.axis]
    for size in before[len(before) + place.axis + 1 :]:
        inner *= size
    step = 1
    for axis in range(-1, -len(after) - 1, -1):
        if step == inner and after[axis] > 1:
            whole = channels % after[axis] == 0 or after[axis] % channels == 0
            return Place(axis, len(after)) if whole else None
        step *= after[axis]
    return None


def _permuted(place: Place, rest: Sequence[Any]) -> Place | None:
    order = rest[0] if len(rest) == 1 and isinstance(rest[0], (list, tuple)) else rest
    if not all(isinstance(axis, int) for axis in order):
        return None
    rank = len(order)
    axes = [axis % rank for axis in order]
    at = rank + place.axis
    return Place(axes.index(at) - rank, rank) if at in axes else None


def _swapped(place: Place, rest: Sequence[Any]) -> Place | None:
    if not all(isinstance(axis, int) and (axis < 0 or place.rank is not None) for axis in rest):
        return None
    a, b = (axis if axis < 0 else axis - (place.rank or 0) for axis in rest)
    return Place({a: b, b: a}.get(place.axis, place.axis), place.rank)
