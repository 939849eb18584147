"""What every defence returns, and the table of defences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from unbackdoor.findings import Report
from unbackdoor.graph import LayerGraph
from unbackdoor.papers import Published
from unbackdoor.prune import Plan, copy_model
from unbackdoor.registry import Registry
from unbackdoor.settings import Configured

DEFENCES: Registry[type[Defence]] = Registry("method")

#: What a defence asks for beside the network: no images; clean ones; or the training set, poisoned images and all.
Needs = Literal["nothing", "clean images", "training images"]


@dataclass(frozen=True)
class Outcome:
    """A repaired network.

    Attributes:
        model: a copy: same class, same state-dict keys and shapes, same dtype and device, same modes.
        report: what was read, scored, pruned, scaled, trained, left alone, and why.
    """

    model: nn.Module
    report: Report


@dataclass(frozen=True, kw_only=True)
class Defence(Configured, Published, ABC):
    """A way to repair a network; its fields are its hyper-parameters, its class attributes say what it asks for."""

    name: ClassVar[str]
    title: ClassVar[str]
    #: Raised by one when the method's code comes to other results: older ones are then no longer taken for its own.
    version: ClassVar[int] = 1
    needs: ClassVar[Needs] = "nothing"
    needs_labels: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    #: What it costs, in passes over the images it is given.
    passes: ClassVar[str] = "none"


@dataclass(frozen=True, kw_only=True)
class DataFree(Defence):
    """A defence that needs nothing but the network."""

    @abstractmethod
    def plan(
        self, model: nn.Module | Mapping[str, Tensor], *, graph: LayerGraph | None = None, example: Any = None
    ) -> Plan:
        """What the method would do; nothing is changed.

        Args:
            model: a network, or its tensors by name (then `graph` is needed).
            graph: its layer graph, if it has been read already.
            example: what the network takes, where its layers cannot be read without (see `layer_graph`); not looked at
                beside a `graph`.

        Raises:
            GraphError: the network could not be read at all.
            SettingError: tensors came without a graph, or the graph is another network's.
        """

    def __call__(self, model: nn.Module, *, graph: LayerGraph | None = None, example: Any = None) -> Outcome:
        """A repaired copy; the network itself is never changed. The arguments are those of `plan`."""
        plan = self.plan(model, graph=graph, example=example)
        repaired = copy_model(model)
        plan.apply_(repaired)
        return Outcome(repaired, plan.report(action="repair"))
