"""LPP, Lipschitzness Precise Pruning (submitted to ICLR 2025).

Symbols, per layer l with c output channels:
    LC_j     score of channel j: |w_j|_2, times |gamma_j| / sqrt(var_j + eps) where a BatchNorm follows   (Sec. 3.3)
    mu, s    mean and population standard deviation of LC over the layer's channels                 (Algorithm 1)
    u1, u2   lower and upper limit in units of s: `lower`, `upper`                                 (Appendix C.3)
    b        width of the band of near outliers, 1.5: `band`                                              (Eq. 8)
    k        number of classifier weights to cut: `fc_weights`                                    (Algorithm 1)

Where this code departs from the printed text, and why (`LPP.as_printed()` is the text to the letter):
    1. BatchNorm factor. Printed as sigma/gamma, the reciprocal of what the network multiplies with: rescaling a
       convolution and its statistics by a, which changes nothing, would change its score by a^2; and it has gamma's
       sign, under which a Lipschitz constant would be negative. Here: |gamma|/sigma.
    2. Where near outliers go. Eq. 9 brings a channel from just inside the band (mu + 1.5 s) down to the mean, below
       channels just outside it, which keep their score: among Gaussian scores 6.5 % of all channels of *any* network
       are so cut. Here they go to the band's lower edge: continuous, order-preserving, and the smallest change that
       leaves no near outlier. `shrink_to="mean"` is Eq. 9. The evidence (clean networks, training images) is in docs.
    3. What is scaled. Eq. 9 scales w_j and leaves the BatchNorm: the slope is right, but the output shifts by
       gamma m (a - 1) / sigma. Here gamma_j is scaled: same slope, no shift. `scale="weight"` is Eq. 9.
    4. u and k have no printed value. u1 = -3 and u2 = 3 are the usual three standard deviations (and CLP's default);
       k is 1 % of the classifier's input features.
    5. Algorithm 1, line 14 says "convolutional" of the classifier step, and line 17 removes "top_k" instead of T;
       read as the fully connected layer, and the weights W[maxId, T].

`norm="either"` is not the paper's: a channel is an outlier where it is one by its filter's length or by CLP's spectral
norm, each against its own mean and deviation in the layer. `LPP.either_norm()` is that, without the band.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unbackdoor.channel_scores import scores_of
from unbackdoor.defences.base import DEFENCES, Defence
from unbackdoor.defences.data_free.auto import Path, strongest
from unbackdoor.defender.case import Case
from unbackdoor.errors import SettingError
from unbackdoor.findings import ClassifierReport, Remark
from unbackdoor.findings.layers import Layer, LayerGraph
from unbackdoor.graph.tensors import Tensors, readable
from unbackdoor.lipschitz import NormFactor, NormKind
from unbackdoor.papers import Paper
from unbackdoor.prune import Editor, Plan, Population, Selection, either, eligible
from unbackdoor.settings import setting

Norm = Literal["l2", "l2sq", "spectral", "either"]

#: What a score is where there are two a channel.
DEVIATIONS = (
    "a channel's distance from its layer's mean in standard deviations, by the length of its filter or by its spectral "
    "norm, whichever lies farther out, the norm behind it folded in"
)


@dataclass(frozen=True, kw_only=True)
class LPP(Defence):
    """Prune outlier channels on both sides, shrink near outliers, cut the most suspicious classifier weights."""

    name: ClassVar[str] = "lpp"
    title: ClassVar[str] = "Lipschitzness Precise Pruning"
    paper: ClassVar[Paper] = Paper(
        authors=(),
        title="Rethinking Lipschitzness Data-free Backdoor Defense",
        venue="submitted to ICLR",
        year=2025,
        url="https://openreview.net/forum?id=cPIs6PlCuE",
    )
    lower: float = setting(
        -3.0, "channels with a score below mean + lower * std are pruned; -inf switches this off", most=0, own=True
    )
    upper: float = setting(
        3.0,
        "channels with a score above mean + upper * std are pruned; inf switches this off, and the band",
        least=0,
        own=True,
    )
    band: float = setting(
        1.5,
        "near outliers begin this many standard deviations below the upper threshold (Eq. 8); 0 switches it off",
        least=0,
        most=1e6,
    )
    fc_weights: float = setting(
        0.01,
        "classifier weights to set to zero: a share of its input features below 1, else a whole number of at most all "
        "of them; 0 is none",
        least=0,
        most=1e9,
        own=True,
    )
    norm_factor: NormFactor = setting(
        "folded",
        'how a BatchNorm enters the score: "folded"; "no_eps"; "printed", the reciprocal; "printed_signed", '
        'the reciprocal with gamma\'s sign, as it is printed; or "none"',
        own=True,
    )
    norm: Norm = setting(
        "l2",
        '"l2" (Algorithm 1), "l2sq" (the other reading of Sec. 3.3), "spectral" (CLP\'s), or "either": an '
        'outlier by "l2" or by "spectral" is one',
    )
    scale: Literal["gamma", "weight"] = setting(
        "gamma", 'what shrinking scales: "gamma", or "weight" (Eq. 9 as printed)', own=True
    )
    shrink_to: Literal["edge", "mean"] = setting(
        "edge", 'where near outliers go: the band\'s lower "edge", or the layer\'s "mean" (Eq. 9 as printed)', own=True
    )
    upscale: bool = setting(
        False, "whether a band that reaches below the mean (upper < band) may enlarge channels, as printed", own=True
    )
    layers: Literal["conv", "all"] = setting(
        "conv",
        '"conv" scores convolutions, and Linear layers with a BatchNorm, which are 1x1 convolutions; "all" '
        "also other hidden Linear layers and attention projections, of which the paper says nothing",
        own=True,
    )
    correction: int = setting(0, "0 divides the variance by c (Algorithm 1, line 8), 1 by c - 1", choices=(0, 1))
    budget: float = setting(
        math.inf,
        "points of accuracy that it may be predicted to cost; if finite, upper, lower, band and norm are chosen: the "
        "strongest cut within it, by generated images",
        least=0,
        own=True,
        added=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fc_weights >= 1 and self.fc_weights != int(self.fc_weights):
            raise SettingError(
                f"fc_weights: expected a share below 1 or a whole number of weights, got {self.fc_weights!r}"
            )

    @classmethod
    def as_printed(cls) -> LPP:
        """The paper to the letter: BatchNorm factor sigma/gamma, weights scaled, near outliers to the mean.

        A channel of negative gamma then has a negative score: it can only be pruned, as one of a small constant.
        """
        return cls(norm_factor="printed_signed", scale="weight", shrink_to="mean", upscale=True)

    @classmethod
    def either_norm(cls) -> LPP:
        """Outliers by the filter's length or by its spectral norm, and no band."""
        return cls(norm="either", band=0.0)

    @classmethod
    def auto(cls, budget: float = 1.0) -> LPP:
        """The strongest cut that is predicted to cost at most so many points of accuracy; no data."""
        return cls(budget=budget)

    @property
    def runs(self) -> bool:
        """Whether it runs the network: to see what a cut costs."""
        return self.budget < math.inf

    def plan_for(self, case: Case) -> Plan:
        """Algorithm 1, up to the point where weights would change."""
        if self.runs:
            return self._within_budget(case)
        tensors, graph = case.tensors()
        editor = Editor(tensors, graph, self.scale)
        layers, not_covered, left_alone = eligible(tensors, graph, self._refuse)
        selections = [editor.layer(selection) for selection in self._select(tensors, layers, graph)]
        classifier = self._cut_classifier(tensors, graph, editor)  # lines 14 to 18
        return Plan(
            method=self.name,
            settings=self.settings(),
            graph=graph,
            selections=tuple(selections),
            classifier=classifier,
            edits=tuple(editor.edits),
            not_covered=tuple(not_covered),
            left_alone=tuple(left_alone + editor.left_alone),
            unpaired_norms=graph.unpaired_norms,
            score=DEVIATIONS if self.norm == "either" else "",
        )

    def _within_budget(self, case: Case) -> Plan:
        """Both tails at one threshold, by either norm or both, with the band or without; the plan's settings say which.

        Where nothing stays within the budget, nothing is cut.
        """
        fixed = dataclasses.replace(self, budget=math.inf)

        def path(norm: Norm, band: float) -> Path:
            return lambda u: dataclasses.replace(fixed, norm=norm, band=band, upper=u, lower=-u)

        norms: tuple[Norm, ...] = ("l2", "spectral", "either")
        plan = strongest(
            case, self.budget, [path(norm, band) for norm in norms for band in dict.fromkeys((self.band, 0))]
        )
        if plan is None:
            plan = dataclasses.replace(fixed, upper=math.inf, lower=-math.inf, fc_weights=0).plan_for(case)
        return dataclasses.replace(plan, settings={**plan.settings, "budget": self.budget})

    def _select(self, tensors: Tensors, layers: list[Layer], graph: LayerGraph) -> list[Selection]:
        """Lines 5 to 13."""
        norms: tuple[NormKind, ...] = ("l2", "spectral") if self.norm == "either" else (self.norm,)
        found = [
            outliers(
                Population(
                    layers,
                    scores_of(tensors, layers, graph, norm=norm, factor=self.norm_factor),
                    correction=self.correction,
                ),
                lower=self.lower,
                upper=self.upper,
                band=self.band,
                shrink_to=self.shrink_to,
                upscale=self.upscale,
            )
            for norm in norms
        ]
        if len(found) == 1:
            return found[0]
        names = ("the filter's length", "its spectral norm")
        return [
            either(one, other, names, lower=self.lower, upper=self.upper, band=self.band)
            for one, other in zip(*found, strict=True)
        ]

    def _refuse(self, layer: Layer, weight: Tensor) -> str | None:
        if self.layers == "all" or layer.norm is not None or weight.ndim >= 3:
            return None
        return 'LPP scores convolutions; layers="all" (--layers all) scores this too'

    def _cut_classifier(self, tensors: Tensors, graph: LayerGraph, editor: Editor) -> ClassifierReport | None:
        """Lines 14 to 18: cut the suspected target class's k weights furthest above the other classes'."""
        if self.fc_weights == 0:
            return None
        path = graph.classifier or (graph.outputs[0] if graph.no_classes else None)
        if path is None:
            heads = ", ".join(graph.outputs) or "no single layer makes the answers"
            if any(layer.path == heads and layer.norm is not None for layer in graph.layers):
                heads = f"{heads} makes the output through a norm"
            editor.left_alone.append(Remark("*", "classifier", f"the classifier step was skipped: {heads}"))
            return None
        layer = graph[path]
        weight = tensors[layer.weight].detach()
        reason = readable(tensors, layer) or _no_classifier(layer, weight) or graph.no_classes or None
        if reason is None and tensors.module is not None and not isinstance(tensors[layer.weight], nn.Parameter):
            reason = "its weight is a buffer, not a parameter, so it was not trained"
        if reason is not None:
            editor.left_alone.append(Remark(layer.path, layer.kind, f"the classifier step was skipped: {reason}"))
            return None
        matrix = weight.flatten(1).to("cpu", torch.float64)
        features = matrix.shape[1]
        means = matrix.mean(1)
        suspect = int(means.argmax())
        gaps = suspicion(matrix, suspect)
        count = max(1, round(self.fc_weights * features)) if self.fc_weights < 1 else int(self.fc_weights)
        if count > features:
            raise SettingError(
                f"fc_weights: expected at most {features}, the input features of {layer.path}, got {count}"
            )
        cut = torch.sort(gaps, descending=True, stable=True).indices[:count]
        editor.zero(layer.weight, (torch.full_like(cut, suspect), cut))
        return ClassifierReport(
            path=layer.path,
            guessed_class=suspect,
            features=features,
            cut=tuple(cut.tolist()),
            gaps=tuple(gaps[cut].tolist()),
            class_means=tuple(means.tolist()),
        )


def outliers(
    lc: Population, *, lower: float, upper: float, band: float, shrink_to: str, upscale: bool
) -> list[Selection]:
    """Eqs. 7 to 9, for all layers at once.

    Args:
        lc: LC_j of every channel, and mu and s of every layer.
        lower, upper: u1 and u2; infinite switches a limit off.
        band: b; 0 switches it off.
        shrink_to: "edge" brings a near outlier to the band's lower edge, "mean" to the layer's mean.
        upscale: whether a band that reaches below the mean may enlarge channels.
    """
    low_cut, band_cut, high_cut = lc.at(lower), lc.at(upper - band), lc.at(upper)
    low = lc.varied & (lc.values < lc.each(low_cut))  # Eq. 7: LC_j < mu + u1 s
    high = lc.varied & (lc.values > lc.each(high_cut))  # Eq. 7: LC_j > mu + u2 s
    near = lc.varied & (lc.values > lc.each(band_cut)) & (lc.values < lc.each(high_cut))  # Eq. 8
    near &= ~low & (lc.values > 0)  # where both would have a channel it is pruned; zero cannot be scaled
    # A band that begins below zero ends there: a negative factor would turn the channel round.
    target = lc.each(np.maximum(band_cut, 0.0) if shrink_to == "edge" else lc.mean)
    near &= (target != lc.values) if upscale else (target < lc.values)
    with np.errstate(over="ignore"):
        factors = np.where(near, target / np.where(near, lc.values, 1.0), 1.0)  # Eq. 9: a_j = mu / LC_j
    return lc.selections(
        high=high,
        low=low,
        broken=~lc.finite,
        near=near,
        factors=np.minimum(factors, np.finfo(np.float64).max),
        lower=low_cut,
        band=band_cut if band and upper != math.inf else None,
        upper=high_cut,
    )


def suspicion(weight: Tensor, suspect: int) -> Tensor:
    """Line 16: (F,) by how much the suspect's weights lie above the mean of the other classes'.

    Args:
        weight: (K, F), one row a class.
        suspect: a row.
    """
    others = (weight.sum(0) - weight[suspect]) / (len(weight) - 1)
    return weight[suspect] - others


def _no_classifier(layer: Layer, weight: Tensor) -> str | None:
    """Why a layer cannot take the classifier step, if so."""
    if layer.parametrization is not None:
        return "its weight is computed by a parametrization"
    if layer.tied:
        return "its weight is shared with another layer"
    if layer.transposed or layer.groups > 1:
        return "its rows do not all read the same features"
    if weight.ndim > 2 and max(weight.shape[2:]) > 1:
        return "its output is a map, not one number per class"
    if len(weight) < 2:
        return "it has a single row, so no class can stand out"
    if not bool(torch.isfinite(weight).all()):
        return "its weights contain NaN or infinity"
    return None


DEFENCES.add(LPP.name, LPP)
