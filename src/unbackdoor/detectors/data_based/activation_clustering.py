"""Activation Clustering (Chen et al., SafeAI@AAAI 2019).

It wants the *training images with the labels that the attacker left*: within the target class poisoned images reach the
classifier by other features than clean ones. Per class: the classifier's inputs, reduced to `components` dimensions,
split in two by k-means. A class is suspicious where the smaller part holds at most `share` of its images and the
two parts are well apart (silhouette of at least `silhouette`).

Departures: The dimensions are PCA's by default. The paper takes ICA's (`reduction=ica`). ICA gives all its components
the same variance, so chance decides which of them makes the split: one start finds the poisoned images and another does
not.

If about half of a class is poisoned (10 % of a ten-class training set), neither part is small, and the rule cannot see
it.

PCA, ICA, k-means and the silhouette are scikit-learn's (the extra `detect`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unbackdoor.defender.case import Case, Needs
from unbackdoor.defender.images import DefenderData, classes_of, inputs_of
from unbackdoor.detectors.base import DETECTORS, Found
from unbackdoor.detectors.data_based.base import DataBasedDetector
from unbackdoor.errors import MethodError
from unbackdoor.findings import ClassFinding, finite
from unbackdoor.papers import Paper
from unbackdoor.settings import setting

#: Fewer images of a class are not split.
FEW = 20


@dataclass(frozen=True, kw_only=True)
class ActivationClustering(DataBasedDetector):
    """Find classes whose training images fall in two groups."""

    name: ClassVar[str] = "ac"
    title: ClassVar[str] = "Activation Clustering"
    paper: ClassVar[Paper] = Paper(
        authors=("Chen", "Carvalho", "Baracaldo", "Ludwig", "Edwards", "Lee", "Molloy", "Srivastava"),
        title="Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering",
        venue="SafeAI@AAAI",
        year=2019,
        url="https://arxiv.org/abs/1811.03728",
    )
    needs: ClassVar[Needs] = "training images"

    components: int = setting(10, "number of dimensions that are kept", least=1)
    reduction: Literal["pca", "ica"] = setting("pca", '"pca", or "ica" as published', own=True)
    share: float = setting(
        0.35,
        "a class is suspicious if its smaller group holds at most this share (0.35 in the paper)",
        least=0,
        most=0.5,
    )
    silhouette: float = setting(
        0.1,
        "a class is suspicious from this silhouette on (the paper's range for poisoned classes begins there)",
        least=-1,
        most=1,
    )

    def inspect(self, case: Case, model: nn.Module, data: DefenderData) -> Found:
        """Algorithm 1 of the paper, class by class."""
        classes = classes_of(model, data)
        features = self._features(case, model, data).cpu()
        seed = int(torch.randint(2**31, (), generator=case.rng))
        found = []
        notes: list[str] = []
        for label in range(classes):
            members = (data.labels == label).nonzero().flatten().cpu()
            if len(members) < FEW:
                notes.append(f"class {label}: {len(members)} images are too few to split")
                found.append(
                    ClassFinding(label=label, suspicious=False, values={"smaller part": None, "silhouette": None})
                )
                continue
            second, score = split(features[members], self.components, seed, self.reduction)
            share = float(second.double().mean())
            suspicious = share <= self.share and score >= self.silhouette
            found.append(
                ClassFinding(
                    label=label,
                    suspicious=suspicious,
                    values={"smaller part": share, "silhouette": finite(score)},
                    images=tuple(members[second].tolist()) if suspicious else (),
                )
            )
            case.progress(label + 1, classes, f"class {label}")
        if len(notes) == classes:
            raise MethodError(
                f"ac: expected at least {FEW} images of one class, got too few in {len(data)} images; give more images"
            )
        return tuple(found), tuple(notes)

    def _features(self, case: Case, model: nn.Module, data: DefenderData) -> Tensor:
        """The classifier's inputs, (N, F)."""
        path = case.layers().classifier
        if path is None or path not in dict(model.named_modules()):
            raise MethodError("ac reads the classifier's inputs, and this network has no single classifier layer")
        features = inputs_of(model, path, data, self.name).flatten(1)
        if not bool(torch.isfinite(features).all()):
            raise MethodError(f"ac: {path}: expected one finite feature vector an image")
        return features


def split(features: Tensor, components: int, seed: int, reduction: str = "pca") -> tuple[Tensor, float]:
    """(n, F) -> (n,) bool of the smaller of two groups, and their silhouette."""
    decomposition, cluster, metrics = _sklearn()
    x = features.double().numpy()
    if not (x.std(0) > 0).any():
        return torch.zeros(len(x), dtype=torch.bool), float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ICA that has not converged is still a projection
        kept = min(components, *x.shape)
        if reduction == "ica":
            reduced = decomposition.FastICA(n_components=kept, random_state=seed, max_iter=500).fit_transform(x)
        else:
            reduced = decomposition.PCA(n_components=kept, random_state=seed).fit_transform(x)
        group = cluster.KMeans(n_clusters=2, n_init=10, random_state=seed).fit_predict(reduced)
    if len(set(group.tolist())) < 2:
        return torch.zeros(len(x), dtype=torch.bool), float("nan")
    second = torch.from_numpy(group == 1)
    if second.sum() * 2 > len(x):
        second = ~second
    return second, float(metrics.silhouette_score(reduced, group))


def _sklearn() -> tuple[Any, Any, Any]:
    try:
        from sklearn import cluster, decomposition, metrics
    except ImportError as error:
        raise MethodError("ac needs scikit-learn: pip install 'unbackdoor[detect]'") from error
    return decomposition, cluster, metrics


DETECTORS.add(ActivationClustering.name, ActivationClustering)
