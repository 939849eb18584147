"""The channels of a network's BatchNorms: their inputs recorded, masks laid over them, and the worst chosen.

Masks go through `torch.func.functional_call` with replaced norm weights, so that no architecture is copied or edited.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from unbackdoor.defender.images import DefenderData, accuracy_on, logits_of
from unbackdoor.errors import MethodError
from unbackdoor.findings import Remark
from unbackdoor.findings.layers import Layer, LayerGraph, Norm, why_left
from unbackdoor.graph.activations import watched
from unbackdoor.graph.tensors import Tensors
from unbackdoor.prune import Population, Selection

#: Below every mask.
NOTHING = -1.0

#: Tried in turn where a threshold is chosen on held-out images.
THRESHOLDS = tuple(step / 20 for step in range(20))


class NormChannels:
    """All hidden channels of a network's BatchNorms as one vector, in the order of the norms.

    What is an answer of the network or a gate is left unchanged and listed in `left_alone`; what is not known, in
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
                f"{method} scores the channels of each BatchNorm, and {twice} is shared by several layers"
            )
        self.sizes = [norm.channels for norm in self.norms]
        self.total = sum(self.sizes)
        self._tensors = Tensors(model)
        self._modules = dict(model.named_modules())

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

    def population(self, scores: Mapping[str, Tensor]) -> Population:
        """Path of a norm -> (C,) scores, as one population; deviations are the sample's."""
        layers = [self._as_layer(norm) for norm in self.norms if norm.path in scores]
        return Population(layers, [scores[layer.path].double().cpu() for layer in layers], correction=1)

    def select(
        self, masks: Tensor, threshold: float, held: DefenderData | None, *, tolerance: float, beta: str
    ) -> tuple[tuple[Selection, ...], str]:
        """The channels whose mask is at or below a threshold, and where that came from.

        Args:
            masks: (total,).
            threshold: taken as it is where there is no `held`.
            held: images to choose it on instead.
            tolerance, beta: as in `choose_threshold`.

        Raises:
            MethodError: the masks are not finite, so that they say nothing.
        """
        if not bool(torch.isfinite(masks).all()):
            raise MethodError(f"{self.method}: training diverged: some masks are not finite; try a smaller lr")
        self.model.eval()
        if held is not None:
            threshold = self.choose_threshold(masks, held, tolerance, beta=beta)
        found = self.population(self.by_norm(masks))
        low = (masks <= threshold).cpu().numpy()
        cuts = np.full(len(self.norms), max(threshold, 0.0))
        return tuple(found.selections(low=low, lower=cuts, by_deviation=False)), threshold_origin(threshold, held)

    def _as_layer(self, norm: Norm) -> Layer:
        """A norm's channels as those of a layer that the norm itself is."""
        kind = type(self._modules[norm.path]).__name__ if norm.path in self._modules else "BatchNorm"
        return Layer(
            path=norm.path,
            kind=kind,
            out_channels=norm.channels,
            norm=norm.path,
            rule="itself",
            weight=str(norm.weight),
            part=norm.part,
            why=norm.why,
        )

    def choose_threshold(self, masks: Tensor, held: DefenderData, tolerance: float, *, beta: str) -> float:
        """The largest of THRESHOLDS at which channels with a mask at or below it can go without a loss in accuracy of
        more than `tolerance` of what it was, on images that the masks were not learnt on; -1, which prunes nothing, if
        even those whose mask is 0 cannot go.

        Args:
            masks: (total,).
            held: images that the masks were not learnt on.
            tolerance: the share of the accuracy that may be lost.
            beta: as of an `Editor`.

        Raises:
            MethodError: the network classifies none of these images correctly, so they cannot choose a threshold.
        """
        self.model.eval()
        least = (1 - tolerance) * accuracy_on(self.model, held)
        if least == 0 and tolerance < 1:
            raise MethodError(
                f"the network classifies none of {len(held)} held-out images correctly; give more images, or holdout 0"
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


def threshold_origin(threshold: float, held: DefenderData | None) -> str:
    """Where a threshold came from, for the report."""
    if held is None:
        return f"the threshold is the setting {threshold:g}"
    if threshold == NOTHING:
        return f"nothing was pruned: no threshold kept the accuracy on {len(held)} held-out images"
    return f"the threshold is {threshold:g}, the largest that kept the accuracy on {len(held)} held-out images"


@contextlib.contextmanager
def norm_inputs(
    model: nn.Module, norms: Sequence[Norm], record: Callable[[str, Tensor], None]
) -> Iterator[list[Remark]]:
    """Calls `record(path, input)` whenever a norm is called; at the end the list holds those that never were."""
    modules = dict(model.named_modules())
    remarks: list[Remark] = []
    called: set[str] = set()

    def see(path: str, _call: int, value: object) -> None:
        assert isinstance(value, Tensor)
        called.add(path)
        record(path, value)

    try:
        with watched(model, [norm.path for norm in norms if norm.path in modules], see, side="input"):
            yield remarks
    finally:
        reason = "is never called as a module, so its inputs cannot be recorded"
        remarks.extend(Remark(norm.path, "BatchNorm", reason) for norm in norms if norm.path not in called)
