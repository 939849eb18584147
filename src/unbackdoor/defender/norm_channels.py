"""The channels of a network's BatchNorms: their inputs recorded, masks laid over them, and the worst switched off.

Masks go through `torch.func.functional_call` with replaced norm weights, so that no architecture is copied or edited.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unbackdoor.defender.images import DefenderData, accuracy_on, logits_of
from unbackdoor.errors import MethodError
from unbackdoor.findings import LayerReport, Remark, finite
from unbackdoor.graph import LayerGraph, Norm, why_left

#: Below every mask.
NOTHING = -1.0

#: Tried in turn where a threshold is chosen on held-out images.
THRESHOLDS = tuple(step / 20 for step in range(20))


class NormChannels:
    """All hidden channels of a network's BatchNorms as one vector, in the order of the norms.

    What is an answer of the network or a gate is left alone and said in `left_alone`; what is not known, in
    `not_covered`.

    Args:
        model: a network.
        graph: its layer graph.
        method: for messages.

    Raises:
        MethodError: there is no BatchNorm with running statistics and weights.
    """

    def __init__(self, model: nn.Module, graph: LayerGraph, method: str) -> None:
        self.model, self.method = model, method
        weighted = [norm for norm in graph.norms.values() if norm.weight is not None]
        self.norms = tuple(norm for norm in weighted if norm.part == "hidden")
        others = [
            (norm.part, Remark(norm.path, "BatchNorm", why_left(norm))) for norm in weighted if norm.part != "hidden"
        ]
        self.left_alone = tuple(remark for part, remark in others if part != "unknown")
        self.not_covered = tuple(remark for part, remark in others if part == "unknown")
        if others and not self.norms:
            first = others[0][1]
            raise MethodError(
                f"{method} works on hidden BatchNorm channels, and this network has none: {first.path}: {first.reason}"
            )
        if not self.norms:
            raise MethodError(
                f"{method} works on BatchNorm channels, and this network has none with running statistics and weights; "
                "use ft, nad or ibau, or the data-free lpp"
            )
        names = [norm.weight for norm in self.norms]
        twice = next(
            (name for name in names if {name, *graph.aliases.get(str(name), ())} & (set(names) - {name})), None
        )
        if twice is not None:
            raise MethodError(
                f"{method} scores each BatchNorm's channels by themselves, and {twice} is shared by several"
            )
        self.sizes = [norm.channels for norm in self.norms]
        self.total = sum(self.sizes)
        self._tensors = all_tensors(model)

    def __call__(self, x: Tensor, gain: Tensor, shift: Tensor | None = None) -> Tensor:
        """The network's logits with each norm's weight multiplied by `gain` and its bias by `shift`, both (total,)."""
        replaced = {}
        for norm, factors in zip(self.norms, torch.split(gain, self.sizes), strict=True):
            replaced[norm.weight] = factors * self._tensors[str(norm.weight)]
        if shift is not None:
            for norm, factors in zip(self.norms, torch.split(shift, self.sizes), strict=True):
                if norm.bias is not None:
                    replaced[norm.bias] = factors * self._tensors[norm.bias]
        return logits_of(functional_call(self.model, replaced, (x,)))  # type: ignore[arg-type]

    def ones(self) -> Tensor:
        """(total,) a factor that changes nothing."""
        like = self._tensors[str(self.norms[0].weight)]
        return torch.ones(self.total, dtype=like.dtype, device=like.device)

    def by_norm(self, values: Tensor) -> dict[str, Tensor]:
        """(total,) -> path of a norm -> (C,)."""
        return {norm.path: part for norm, part in zip(self.norms, torch.split(values, self.sizes), strict=True)}

    def prune(
        self, masks: Tensor, threshold: float, held: DefenderData | None, *, tolerance: float, beta: str
    ) -> tuple[tuple[LayerReport, ...], str]:
        """Switch off the channels whose mask is at or below a threshold; returns the records, and what was cut.

        Args:
            masks: (total,).
            threshold: taken as it is where there is no `held`.
            held: images to choose it on instead.
            tolerance, beta: as in `choose_threshold`.

        Raises:
            MethodError: the masks are not finite, so that they say nothing.
        """
        if not bool(torch.isfinite(masks).all()):
            raise MethodError(f"{self.method}: diverged: some masks are no finite numbers; a smaller lr may help")
        self.model.eval()
        if held is not None:
            threshold = self.choose_threshold(masks, held, tolerance, beta=beta)
        by_norm = self.by_norm(masks)
        low = {path: mask <= threshold for path, mask in by_norm.items()}
        switch_off(self.model, self.norms, low, beta=beta)
        modules, cuts = dict(self.model.named_modules()), dict.fromkeys(by_norm, max(threshold, 0.0))
        return report_norms(modules, by_norm, low=low, lower=cuts), told(threshold, held)

    def choose_threshold(self, masks: Tensor, held: DefenderData, tolerance: float, *, beta: str) -> float:
        """The largest of THRESHOLDS at which channels with a mask at or below it can go without a loss in accuracy of
        more than `tolerance` of what it was, on images that the masks were not learnt on; -1, which prunes nothing, if
        even those whose mask is 0 cannot go.

        Args:
            masks: (total,).
            held: images that the masks were not learnt on.
            tolerance: the share of the accuracy that may be lost.
            beta: as in `switch_off`.

        Raises:
            MethodError: the network answers none of these images rightly, so that nothing can be told from them.
        """
        self.model.eval()
        least = (1 - tolerance) * accuracy_on(self.model, held)
        if least == 0 and tolerance < 1:
            raise MethodError(
                f"the network answers none of {len(held)} held-out images rightly; give more images, or holdout 0"
            )
        chosen = NOTHING
        for threshold in THRESHOLDS:
            gain = (masks > threshold).to(masks.dtype)
            with torch.no_grad():
                shift = gain if beta == "zero" else None
                hits = sum(int((self(x, gain, shift).argmax(1) == y).sum()) for x, y in held.chunks())
            if hits / len(held) < least:
                break
            chosen = threshold
        return chosen


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all of their names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def told(threshold: float, held: DefenderData | None) -> str:
    """Where a threshold came from, for the report."""
    if held is None:
        return f"cut at the setting {threshold:g}"
    if threshold == NOTHING:
        return f"none was cut: no threshold kept the accuracy on {len(held)} held-out images"
    return f"cut at {threshold:g}, the largest threshold that kept the accuracy on {len(held)} held-out images"


@contextlib.contextmanager
def norm_inputs(
    model: nn.Module, norms: Sequence[Norm], record: Callable[[str, Tensor], None]
) -> Iterator[list[Remark]]:
    """Calls `record(path, input)` whenever a norm is called; at the end the list holds those that never were."""
    modules = dict(model.named_modules())
    handles = []
    remarks: list[Remark] = []
    called: set[str] = set()
    for norm in norms:

        def hook(
            _module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], path: str = norm.path
        ) -> None:
            called.add(path)
            record(path, inputs[0] if inputs else named["input"])

        if norm.path in modules:
            handles.append(modules[norm.path].register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield remarks
    finally:
        for handle in handles:
            handle.remove()
        reason = "is never called as a module: its inputs cannot be recorded"
        remarks.extend(Remark(norm.path, "BatchNorm", reason) for norm in norms if norm.path not in called)


def switch_off(model: nn.Module, norms: Sequence[Norm], pruned: Mapping[str, Tensor], *, beta: str) -> None:
    """Prune channels in place.

    Args:
        model: the network.
        norms: its norms.
        pruned: path of a norm -> (C,) bool.
        beta: "zero" makes the channel zero; "keep" leaves it the constant beta, as some published code does.
    """
    tensors = all_tensors(model)
    with torch.no_grad():
        for norm in norms:
            mask = pruned.get(norm.path)
            if mask is None or not bool(mask.any()):
                continue
            for name in (norm.weight, norm.bias if beta == "zero" else None):
                if name is not None:
                    tensors[name][mask] = 0


def report_norms(
    modules: Mapping[str, nn.Module],
    scores: Mapping[str, Tensor],
    high: Mapping[str, Tensor] | None = None,
    low: Mapping[str, Tensor] | None = None,
    *,
    upper: Mapping[str, float] | None = None,
    lower: Mapping[str, float] | None = None,
    correction: int = 1,
) -> tuple[LayerReport, ...]:
    """One record a norm, from (C,) scores, and (C,) bool of what was pruned above and below."""
    result = []
    for path, values in scores.items():
        known = values[torch.isfinite(values)].double()
        kind = type(modules[path]).__name__ if path in modules else "BatchNorm"
        result.append(
            LayerReport(
                path=path,
                kind=kind,
                norm=path,
                rule="itself",
                scores=tuple(map(finite, values.double().tolist())),
                mean=float(known.mean()) if len(known) else None,
                std=float(known.std(correction=correction)) if len(known) > correction else None,
                lower=finite((lower or {}).get(path)),
                band=None,
                upper=finite((upper or {}).get(path)),
                pruned_high=_indices(high, path),
                pruned_low=_indices(low, path),
            )
        )
    return tuple(result)


def _indices(masks: Mapping[str, Tensor] | None, path: str) -> tuple[int, ...]:
    return tuple(masks[path].nonzero().flatten().tolist()) if masks is not None and path in masks else ()
