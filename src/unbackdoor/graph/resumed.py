"""A network that goes on from what it computed before, where only its later layers are changed.

Channels are raised late in a network, thousands of times on the same images. What lies before them gives the same each
time. So the modules that return before the first of some places is reached are run once. From then on their results are
given back, and not computed. Operations between modules run again, on these results.

Results that only other such modules take are not kept, and zeros stand for them. Which these are is tried on two
images: as many of the first results as can be are replaced, by NaN, by zeros and by large numbers of either sign,
without a change of the answers. If these images are answered otherwise although all results are given back, as where a
module leaves something behind beside its result, the network runs whole each time, as it would without this.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unbackdoor.errors import MethodError

#: Bytes that are kept at most; where it would be more, the network runs whole.
MOST = 2**31
#: Fewer answers than this are not worth the trouble.
FEWEST = 500
#: What a result is replaced by to see whether it is needed: a comparison may come out as before with one of them.
STAND_INS = (math.nan, 0.0, 1e4, -1e4)
#: Of the largest logit: what rounding may change.
ROUNDING = 1e-3

#: (N, C, H, W) images -> (N, classes), through the network.
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Call:
    """A call of a module that returned.

    Attributes:
        number: of all calls of a forward pass, in the order in which they begin.
        module: what was called.
        none: (0, ...) no rows of its result.
        result: (N, ...) a row for each image, where they are kept.
    """

    number: int
    module: nn.Module
    none: Tensor
    result: Tensor | None

    def rows(self, rows: Tensor, stand_in: float) -> Tensor:
        """Of its result, or as many that stand for them."""
        if self.result is not None:
            return self.result[rows.to(self.result.device)]
        zeros = self.none.new_zeros(len(rows), *self.none.shape[1:])  # memory that is touched by nobody costs nothing
        return zeros.fill_(stand_in) if stand_in else zeros


@contextlib.contextmanager
def resumed(
    model: nn.Module, run: Run, places: Collection[str], pixels: Tensor, *, exact: Run, chunk: int, asked: int
) -> Iterator[Run]:
    """Within, rows of some images are answered from the first of some modules on; gradients of what follows go through.

    Args:
        model: the network, in eval mode. Nothing before the places may be changed within.
        run: runs it.
        places: paths of modules. Hooks may change what they return.
        pixels: (N, C, H, W), at least one.
        exact: runs it without rounding that depends on how many images there are.
        chunk: images in a forward pass.
        asked: about how many answers will be asked for.

    Yields:
        (K,) numbers of images -> (K, classes) logits.
    """
    calls = _kept(model, run, places, pixels, exact, chunk) if asked >= FEWEST else None
    if calls is None:
        yield lambda rows: run(pixels[rows])
        return
    with _given_back(run, pixels, calls) as answer:
        yield answer


def same(found: Tensor, wanted: Tensor) -> bool:
    """Whether two networks' logits are the same but for rounding."""
    return bool((found - wanted).abs().max() <= ROUNDING * wanted.abs().max())


def _kept(
    model: nn.Module, run: Run, places: Collection[str], pixels: Tensor, exact: Run, chunk: int
) -> list[_Call] | None:
    """The calls before the places, with the results that are needed; None where the network must run whole."""
    few = pixels[:2]
    calls = _recorded(model, exact, places, few)
    first = _first_needed(exact, calls, few)
    if first is None:
        return None
    needed = {call.number: call.result for call in calls[first:] if call.result is not None}
    if sum(result.nbytes for result in needed.values()) / len(few) * len(pixels) > MOST:
        return None
    whole: dict[int, Tensor] = {}
    for start in range(0, len(pixels), chunk):
        part = _recorded(model, run, places, pixels[start : start + chunk], needed)
        if [call.number for call in part] != [call.number for call in calls]:
            return None
        calls = part
        for call in part:
            if call.result is not None:
                if call.number not in whole:
                    whole[call.number] = call.none.new_empty(len(pixels), *call.none.shape[1:])
                whole[call.number][start : start + chunk] = call.result
    return [replace(call, result=whole.get(call.number)) for call in calls]


@torch.no_grad()
def _recorded(
    model: nn.Module, run: Run, places: Collection[str], pixels: Tensor, needed: Collection[int] | None = None
) -> list[_Call]:
    """The calls that return before one of the places is reached, none within another; results of all, or the needed.

    A module that does not return a tensor with a row for each image runs again each time: the calls within it stand
    for it. A script runs again, too.
    """
    begun, reached = 0, False
    open_calls: list[tuple[int, list[_Call]]] = [(-1, [])]  # number, and the calls within it that returned

    def enters(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object) -> None:
            nonlocal begun, reached
            reached = reached or path in places
            open_calls.append((begun, []))
            begun += 1

        return hook

    def returns(module: nn.Module, _inputs: object, result: object) -> None:
        if reached:
            return
        number, within = open_calls.pop()
        if isinstance(result, Tensor) and result.is_floating_point() and result.shape[:1] == pixels.shape[:1]:
            wanted = needed is None or number in needed
            kept = result.clone() if wanted else None  # what follows may write into it
            within = [_Call(number, module, result[:0].clone(), kept)]
        open_calls[-1][1].extend(within)

    with contextlib.ExitStack() as stack:
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_pre_hook(enters(path)).remove)
                stack.callback(module.register_forward_hook(returns).remove)
        run(pixels)
    return [call for _, within in open_calls for call in within] if reached else []


def _first_needed(run: Run, calls: Sequence[_Call], pixels: Tensor) -> int | None:
    """The number of the first call whose result is needed; None where the answers are others even with all of them."""
    rows = torch.tensor([len(pixels) - 1, 0, len(pixels) - 1])  # another number, in another order
    with torch.no_grad():
        wanted = run(pixels[rows])
        run(pixels)  # what modules leave behind is of other images now

    def alike(without: int, stand_in: float) -> bool:
        """Whether the answers stay, if so many first calls return nothing but this number."""
        replaced = [replace(call, result=None) if at < without else call for at, call in enumerate(calls)]
        try:
            with torch.no_grad(), _given_back(run, pixels, replaced, stand_in=stand_in) as answer:
                return same(answer(rows), wanted)
        except MethodError:
            return False

    if not alike(0, 0.0):
        return None
    low, high = 0, len(calls)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if all(alike(middle, number) for number in STAND_INS) else (low, middle - 1)
    return low


@contextlib.contextmanager
def _given_back(run: Run, pixels: Tensor, calls: Sequence[_Call], stand_in: float = 0.0) -> Iterator[Run]:
    """As `resumed`; `stand_in` is what results consist of that are not kept."""
    at, wanted = 0, torch.empty(0, dtype=torch.long)

    def answer(rows: Tensor) -> Tensor:
        nonlocal at, wanted
        at, wanted = 0, rows
        return run(pixels[rows])

    def instead(module: nn.Module, forward: Callable[..., object]) -> Callable[..., object]:
        def give(*inputs: object, **named: object) -> object:
            nonlocal at
            if at < len(calls) and calls[at].module is module:
                at += 1
                return calls[at - 1].rows(wanted, stand_in)
            return forward(*inputs, **named)

        return give

    with contextlib.ExitStack() as stack:
        for module in dict.fromkeys(call.module for call in calls):
            had = module.__dict__.get("forward")
            module.forward = instead(module, module.forward)
            stack.callback(_restore, module, had)
        yield answer


def _restore(module: nn.Module, forward: Callable[..., object] | None) -> None:
    """The forward that it had of its own, or that of its class."""
    if forward is None:
        del module.forward
    else:
        module.forward = forward
