"""A plan: what a method would do to a network, as a value that can be applied and undone.

It names the tensors, the places in them, and their content before and after. Applying it checks that the network holds
what the plan was made for; undoing it puts the old content back bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from unbackdoor.errors import MethodError, PlanError
from unbackdoor.findings import ClassifierReport, DataReport, LayerReport, Remark, Report, Stage, Witness
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph.tensors import Tensors
from unbackdoor.prune.edit import Edit, same_bits
from unbackdoor.prune.outliers import Mask, Selection


@dataclass(frozen=True)
class Plan:
    """What a method would do to a network; nothing has been done yet.

    Attributes:
        method, settings: which method, and all its hyper-parameters.
        graph: the layers it was made from.
        selections: per layer, what is pruned and why; empty for a method that scores no channels.
        classifier: the classifier step, or None.
        edits: the changes, tensor by tensor.
        not_covered, left_alone: what could not be read, and what was left as it is.
        unpaired_norms: norms that belong to no single layer, of a method that scores layers.
        score: what a score is; empty where it is a channel's Lipschitz constant.
        stages: how training went, of a method that trains.
        data: the images that the method was given, if any.
        witness: what the witnesses said before anything was planned, of a method that asks them.
        doubtful: the class that was closed though no class is suspected, if any.
        story: what such a method tried, what came of it and what it chose, in sentences.
    """

    method: str
    settings: Mapping[str, Any]
    graph: LayerGraph
    selections: tuple[Selection, ...]
    classifier: ClassifierReport | None
    edits: tuple[Edit, ...]
    not_covered: tuple[Remark, ...] = ()
    left_alone: tuple[Remark, ...] = ()
    unpaired_norms: tuple[str, ...] = ()
    score: str = ""
    stages: tuple[Stage, ...] = ()
    data: DataReport | None = None
    witness: Witness | None = None
    doubtful: int | None = None
    story: tuple[str, ...] = ()

    @property
    def scores(self) -> dict[str, Tensor]:
        """Layer path -> (C,) float64."""
        return {s.path: torch.from_numpy(s.scores) for s in self.selections}

    @property
    def damage(self) -> str | None:
        """What is broken so far that nothing sound would be left: most channels of a layer are no finite numbers.

        A few broken channels are pruned and reported instead.
        """
        for selection in self.selections:
            count, of = int(selection.broken.sum()), len(selection.broken)
            if count > of / 2:
                names = [selection.layer.weight, selection.layer.bias]
                for norm in self.graph.norms_of(selection.layer):
                    names += [norm.weight, norm.bias, norm.mean, norm.var]
                return (
                    f"{selection.path!r}: expected channels with a finite score, got {count} of {of} without one "
                    f"(from {', '.join(name for name in names if name is not None)})"
                )
        return None

    def apply_(self, target: nn.Module | MutableMapping[str, Tensor]) -> None:
        """Make the changes, in place: all of them or none.

        Args:
            target: the network that the plan was made for, or a copy of it; or its tensors by name.

        Raises:
            PlanError: it does not hold what the plan was made for.
            MethodError: most channels of a layer are no numbers: nothing sound would be left of it.
        """
        if self.damage is not None:
            raise MethodError(f"{self.damage}; the network is damaged and was not changed")
        self._write(target, forward=True)

    def undo(self, target: nn.Module | MutableMapping[str, Tensor]) -> None:
        """Take the changes back, bit for bit.

        Raises:
            PlanError: the plan is not what was last applied to it.
        """
        self._write(target, forward=False)

    def report(self, *, action: str = "plan") -> Report:
        """The plan as plain values."""
        return Report(
            action=action,
            method=self.method,
            settings=self.settings,
            score=self.score,
            layers=tuple(_layer_report(s) for s in self.selections),
            classifier=self.classifier,
            stages=self.stages,
            data=self.data,
            witness=self.witness,
            doubtful=self.doubtful,
            story=self.story,
            not_covered=self.not_covered,
            left_alone=self.left_alone,
            unpaired_norms=self.unpaired_norms,
        )

    def _write(self, target: nn.Module | MutableMapping[str, Tensor], *, forward: bool) -> None:
        tensors = Tensors(target)
        writes: list[tuple[str, Tensor, tuple[Any, ...], Tensor, Tensor]] = []
        for edit in self.edits:
            expected, new = (edit.before, edit.after) if forward else (edit.after, edit.before)
            if edit.name not in tensors:
                raise PlanError(f"the plan changes {edit.name}, which this network does not have")
            for tensor in self._same_tensors(tensors, edit.name):
                index = tuple(i.to(tensor.device) if isinstance(i, Tensor) else i for i in edit.index)
                try:
                    found = tensor[index]
                except (IndexError, RuntimeError) as error:
                    raise PlanError(f"the plan does not fit {edit.name} of shape {tuple(tensor.shape)}") from error
                if not same_bits(found, expected):
                    state = "is not what the plan was made for" if forward else "is not what the plan left"
                    raise PlanError(f"{edit.name} {state}; make a new plan for this network")
                if any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
                    raise PlanError(
                        f"{edit.name} keeps several channels in one place in memory; apply the plan to a copy"
                    )
                writes.append((edit.name, tensor, index, expected, new))
        with torch.no_grad():
            for done, (name, tensor, index, _, new) in enumerate(writes):
                try:
                    tensor[index] = new.to(tensor.device)
                except RuntimeError as error:
                    for _, written, at, old, _ in writes[:done]:
                        written[at] = old.to(written.device)
                    raise PlanError(f"{name} cannot be written to: {str(error).splitlines()[0]}") from error

    def _same_tensors(self, tensors: Tensors, name: str) -> list[Tensor]:
        """A tensor, and those of its other names that have memory of their own (as in a file)."""
        found = [tensors[name].detach()]
        for other in self.graph.aliases.get(name, ()):
            if other in tensors and all(tensors[other].data_ptr() != one.data_ptr() for one in found):
                found.append(tensors[other].detach())
        return found


def differ(one: nn.Module, other: nn.Module) -> bool:
    """Whether any tensor of a network is another in a copy of it."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return any(not torch.equal(a, b) for a, b in pairs)


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy; tensors that a forward pass left behind (features, weights of older weight_norm) are copied too."""
    held = [value for module in model.modules() for value in vars(module).values()]
    computed = [value for value in tree_leaves(held) if isinstance(value, Tensor) and not value.is_leaf]
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in computed}
    return copy.deepcopy(model, memo)


def _layer_report(selection: Selection) -> LayerReport:
    mutable = not selection.immutable

    def channels(mask: Mask, wanted: bool = mutable) -> tuple[int, ...]:  # noqa: FBT001
        return tuple(np.flatnonzero(mask).tolist()) if wanted else ()

    def number(value: float) -> float | None:
        return value if np.isfinite(value) else None

    layer = selection.layer
    notes = tuple(note for note in (layer.note, selection.note) if note)
    return LayerReport(
        path=selection.path,
        kind=layer.kind,
        norm=", ".join(layer.norms) if layer.norms else None,
        rule=layer.rule,
        scores=tuple(number(x) for x in selection.scores.tolist()),
        mean=number(selection.mean),
        std=number(selection.std),
        lower=number(selection.lower),
        band=number(selection.band),
        upper=number(selection.upper),
        pruned_high=channels(selection.high),
        pruned_low=channels(selection.low),
        not_finite=channels(selection.broken),
        scaled=channels(selection.near),
        factors=tuple(selection.factors[selection.near].tolist()) if mutable else (),
        immutable=channels(selection.pruned, not mutable),
        notes=(*notes, *selection.out_of_reach),
    )
