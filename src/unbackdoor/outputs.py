"""Find the logits in a network's output, which may be a tensor, a dict, a tuple or a dataclass."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from unbackdoor.errors import ArchitectureError

#: How many parts of an output a message lists.
_LISTED = 12


def logits_of(answer: object) -> Tensor:
    """A network's output as logits of shape (N, classes).

    Raises:
        ArchitectureError: it is not such a tensor; the message describes it, and how to name a part of it.
    """
    if not isinstance(answer, Tensor) or answer.ndim != 2:
        raise ArchitectureError(
            f"expected a network that returns logits of shape (N, classes), got {described(answer)}"
        )
    return answer


def part_of(answer: object, output: str) -> object:
    """One part of a network's output.

    Args:
        answer: a mapping, a tuple, a list or a dataclass.
        output: a key, a number from 0, or a field's name.

    Raises:
        ArchitectureError: the output has no such part.
    """
    parts = parts_of(answer)
    if output in parts:
        return parts[output]
    if isinstance(answer, Tensor):
        raise ArchitectureError(f"--output {output}: the network returns one tensor; leave --output (output=...) out")
    raise ArchitectureError(f"--output {output}: the output has no such part; the network returns {described(answer)}")


@contextlib.contextmanager
def answering(model: nn.Module, output: str | None) -> Iterator[None]:
    """Inside the block, a network returns only the named part of its output; None changes nothing.

    It is done by a hook, so that the network's modules, tensors and class stay unchanged.
    """
    if output is None:
        yield
        return
    handle = model.register_forward_hook(lambda _module, _inputs, answer: part_of(answer, output))
    try:
        yield
    finally:
        handle.remove()


def parts_of(answer: object) -> dict[str, object]:
    """The parts of an output by name; those of a named tuple by number too."""
    if isinstance(answer, Mapping):
        return {str(key): value for key, value in answer.items()}
    if isinstance(answer, tuple | list):
        names = getattr(answer, "_fields", ())
        return {str(i): value for i, value in enumerate(answer)} | dict(zip(names, answer, strict=False))
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        return {item.name: getattr(answer, item.name) for item in dataclasses.fields(answer)}
    return {}


def described(answer: object) -> str:
    """A network's output in words, and what to do if it is not logits, for the end of a message."""
    if isinstance(answer, Tensor):
        why = ", a map or a sequence; only classifiers are supported" if answer.ndim > 2 else ""
        return f"a tensor {tuple(answer.shape)}{why}"
    parts, names = parts_of(answer), getattr(answer, "_fields", None)
    shown = [f"{key} {_short(value)}" for key, value in parts.items() if names is None or key in names]
    more = f" and {len(shown) - _LISTED} more" if len(shown) > _LISTED else ""
    kind = "nothing" if answer is None else f"a {type(answer).__name__}"
    if not shown:
        return kind
    return f"{kind} of {', '.join(shown[:_LISTED])}{more}; name the part that is the logits with --output (output=...)"


def _short(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"({type(value).__name__})"
