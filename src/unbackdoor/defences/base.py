"""What every defence returns, and the table of defences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, Unpack

from torch import Tensor, nn

from unbackdoor.defender.case import Beside, Case, Needs
from unbackdoor.errors import SettingError
from unbackdoor.findings import Report
from unbackdoor.papers import Published
from unbackdoor.prune import Plan, copy_model
from unbackdoor.registry import Registry
from unbackdoor.settings import Configured

DEFENCES: Registry[type[Defence]] = Registry("method")


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

    @property
    def runs(self) -> bool:
        """Whether it runs the network, rather than read its weights alone."""
        return self.needs != "nothing" or self.needs_gradients

    def within(self, points: float) -> Self:
        """The same method, which takes no repair that is predicted to lose more points of accuracy.

        Here: the method itself. Most predict nothing, and what they did is judged afterwards.
        """
        del points
        return self

    @abstractmethod
    def plan_for(self, case: Case) -> Plan:
        """The method itself: what it would do in this case; nothing is changed.

        Raises:
            GraphError: the network could not be read at all.
            SettingError: the case lacks what the method needs, or holds what does not fit.
            MethodError: the method cannot work on this network, or on these images.
        """

    def run(self, case: Case) -> Outcome:
        """A repaired copy of the case's network."""
        plan = self.plan_for(case)
        repaired = copy_model(case.module)
        plan.apply_(repaired)
        return Outcome(repaired, plan.report(action="repair" if self.needs == "nothing" else "defend"))

    def plan(
        self,
        model: nn.Module | Mapping[str, Tensor],
        images: Tensor | None = None,
        labels: Tensor | None = None,
        **more: Unpack[Beside],
    ) -> Plan:
        """What the method would do; nothing is changed. The arguments are those of a `Case`."""
        self._check_images(images, labels)
        return self.plan_for(Case(network=model, images=images, labels=labels, **more))

    def __call__(
        self, model: nn.Module, images: Tensor | None = None, labels: Tensor | None = None, **more: Unpack[Beside]
    ) -> Outcome:
        """A repaired copy; the network itself is never changed.

        Args:
            model: a network.
            images, labels: for a method that needs them (`needs`).
            more: graph, example, generator, spec, output and progress, as in a `Case`.
        """
        self._check_images(images, labels)
        return self.run(Case(network=model, images=images, labels=labels, **more))

    def _check_images(self, images: Tensor | None, labels: Tensor | None) -> None:
        """SettingError if images come that the method would not look at."""
        if self.needs == "nothing" and (images is not None or labels is not None):
            raise SettingError(f"{self.name} uses no images: expected the network alone")
