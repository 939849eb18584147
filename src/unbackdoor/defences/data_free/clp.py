"""CLP, Channel Lipschitzness Pruning (Zheng et al., ECCV 2022).

Symbols, per layer:
    sigma(w_j)   largest singular value of filter j reshaped to (c_in, k*k)
    UCLC_j       upper bound of channel j's Lipschitz constant: sigma(w_j) * |gamma_j| / sqrt(var_j)
    u            channels with UCLC_j > mean + u * std (sample) are pruned: gamma_j = beta_j = 0

Where this code departs from the authors' published code (`CLP.as_published()` restores what a setting can restore):
    1. Pairs come from the dataflow. Theirs takes the convolution registered last before each BatchNorm, which on
       pre-activation networks is another one.
    2. eps stays in the factor. Without it a channel with var = 0 scores infinity or NaN, which poisons mean and std
       and silently switches pruning off for its layer.
    3. Layers without a BatchNorm are scored by sigma(w_j) and pruned in the filter; theirs returns such networks
       unchanged without a word.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unbackdoor.channel_scores import scores_of
from unbackdoor.defences.base import DEFENCES, Defence
from unbackdoor.defences.data_free.auto import strongest
from unbackdoor.defender.case import Case
from unbackdoor.findings.layers import Layer
from unbackdoor.lipschitz import NormFactor
from unbackdoor.papers import Paper
from unbackdoor.prune import Editor, Plan, Population, eligible
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class CLP(Defence):
    """Prune channels whose largest singular value stands out."""

    name: ClassVar[str] = "clp"
    title: ClassVar[str] = "Channel Lipschitzness Pruning"
    paper: ClassVar[Paper] = Paper(
        authors=("Zheng", "Tang", "Li", "Liu"),
        title="Data-free Backdoor Removal based on Channel Lipschitzness",
        venue="ECCV",
        year=2022,
        url="https://arxiv.org/abs/2208.03111",
    )
    u: float = setting(3.0, "channels with a score above mean + u * std are pruned; inf switches this off", least=0)
    norm_factor: NormFactor = setting(
        "folded",
        'how a BatchNorm enters the score: "folded", or "no_eps" as published',
        choices=("folded", "no_eps", "printed", "none"),
        own=True,
    )
    only_with_norm: bool = setting(
        False, "whether layers without a BatchNorm are left alone, as in the published code", own=True
    )
    correction: int = setting(1, "1 divides the variance by c - 1 (published), 0 by c", choices=(0, 1))
    budget: float = setting(
        math.inf,
        "points of accuracy that it may be predicted to cost; if finite, u is chosen: the "
        "strongest cut within it, by generated images",
        least=0,
        own=True,
        added=True,
    )

    @classmethod
    def as_published(cls) -> CLP:
        """The authors' formula: no eps, BatchNormed convolutions only."""
        return cls(norm_factor="no_eps", only_with_norm=True)

    @classmethod
    def auto(cls, budget: float = 1.0) -> CLP:
        """The strongest cut that is predicted to cost at most so many points of accuracy; no data."""
        return cls(budget=budget)

    @property
    def runs(self) -> bool:
        """Whether it runs the network: to see what a cut costs."""
        return self.budget < math.inf

    def plan_for(self, case: Case) -> Plan:
        """Score by sigma, prune above the threshold."""
        if self.runs:
            return self._within_budget(case)
        tensors, graph = case.tensors()
        editor = Editor(tensors, graph)
        layers, not_covered, left_alone = eligible(tensors, graph, self._refuse)
        scores = scores_of(tensors, layers, graph, norm="spectral", factor=self.norm_factor)
        uclc = Population(layers, scores, correction=self.correction)
        threshold = uclc.at(self.u)
        high = uclc.varied & (uclc.values > uclc.each(threshold))
        selections = [editor.layer(one) for one in uclc.selections(high=high, broken=~uclc.finite, upper=threshold)]
        return Plan(
            method=self.name,
            settings=self.settings(),
            graph=graph,
            selections=tuple(selections),
            classifier=None,
            edits=tuple(editor.edits),
            not_covered=tuple(not_covered),
            left_alone=tuple(left_alone + editor.left_alone),
            unpaired_norms=graph.unpaired_norms,
        )

    def _within_budget(self, case: Case) -> Plan:
        """The lowest threshold that stays within the budget; the plan's settings say which."""
        fixed = dataclasses.replace(self, budget=math.inf)
        plan = strongest(case, self.budget, [lambda u: dataclasses.replace(fixed, u=u)])
        plan = plan or dataclasses.replace(fixed, u=math.inf).plan_for(case)
        return dataclasses.replace(plan, settings={**plan.settings, "budget": self.budget})

    def _refuse(self, layer: Layer, weight: Tensor) -> str | None:
        if weight.ndim < 3 and (layer.norm is None or self.only_with_norm):
            return "CLP scores convolutions"
        if layer.norm is None and self.only_with_norm:
            return "CLP as published scores convolutions with a BatchNorm"
        return None


DEFENCES.add(CLP.name, CLP)
