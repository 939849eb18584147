"""The head quadratic programme: how far must the classifier's input move until one class has every answer?

Symbols, per class k:
    w_j, b_j   the classifier's row and bias
    h          its input on an image that is not answered with k
    c_j        max over h of (w_j - w_k)^T h + b_j - b_k
    s_k        the smallest s with (w_k - w_j)^T s >= c_j for all j other than k
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from unbackdoor.defender.case import Progress, silent
from unbackdoor.defender.deviations import deviations
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.surrogates import dead_leaves, random_spectra
from unbackdoor.errors import MethodError
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph.activations import watched
from unbackdoor.inputs import InputSpec

Array = npt.NDArray[np.float64]
#: A family of surrogates, and the progress of a part of the work.
Make = Callable[[int, InputSpec, torch.Generator], Tensor]
Told = Callable[[int, str], None]

#: Surrogates made and shown at a time.
BATCH = 100
#: The share of surrogates on which the classifier alone must answer as the network does.
ALIKE = 0.99


@dataclass(frozen=True, kw_only=True)
class Ways:
    """How far each class is from the others, in the classifier's input.

    Attributes:
        norms: |s_k|; None where no s reaches it, or nothing is left to be sent there.
        scores: distance of log |s_k| from the median of the classes, in robust deviations; None where there is no norm.
        shares: of the generated images, answered with each class.
    """

    norms: tuple[float | None, ...]
    scores: tuple[float | None, ...]
    shares: tuple[float, ...]


@torch.no_grad()
def ways(
    shown: OnPixels, graph: LayerGraph, generator: torch.Generator, *, count: int = 600, progress: Progress = silent
) -> Ways:
    """One programme a class, on dead leaves and random spectra.

    Args:
        shown: the network; it is run in its own precision.
        graph: its layers.
        generator: of the images.
        count: of images, half of each kind.
        progress: called with (done, total, a note).

    Raises:
        MethodError: no single linear classifier makes the answers, or fewer than three classes can be reached.
    """
    weight, bias, path = classifier(graph, shown.model)
    if len(weight) < 3:
        raise MethodError(f"head: {path}: expected 3 or more classes, got {len(weight)}")
    network = dataclasses.replace(shown, exact=True)
    half = count // 2
    families = ((dead_leaves, count - half), (random_spectra, half))
    batches = [(make, min(BATCH, wanted - done)) for make, wanted in families for done in range(0, wanted, BATCH)]
    total = len(batches) + len(weight)

    def told(done: int, note: str) -> None:
        progress(done, total, note)

    features, answers = _surrogates(network, path, weight.shape[1], batches, generator, told)
    logits = features @ weight.T + bias
    alike = float((logits.argmax(1) == answers).double().mean())
    if alike < ALIKE:
        raise MethodError(
            f"head: expected answers that are W h + b of what {path} takes, got others for {1 - alike:.0%} of the "
            "generated images: something after it changes them"
        )
    norms = _norms(weight, logits, lambda done, note: told(len(batches) + done, note))
    reached = [label for label, norm in enumerate(norms) if norm is not None]
    if len(reached) < 3:
        raise MethodError(
            f"head: expected 3 or more classes that a change of {path}'s input reaches, found {len(reached)} of "
            f"{len(norms)}"
        )
    far = dict(zip(reached, deviations([math.log(norm) for norm in norms if norm is not None]), strict=True))
    return Ways(
        norms=tuple(norms),
        scores=tuple(far.get(label) for label in range(len(norms))),
        shares=tuple(float((answers == label).double().mean()) for label in range(len(norms))),
    )


def _surrogates(
    network: OnPixels,
    path: str,
    width: int,
    batches: Sequence[tuple[Make, int]],
    generator: torch.Generator,
    told: Told,
) -> tuple[Tensor, Tensor]:
    """The classifier's inputs (N, width) in float64, and the network's answers (N,)."""
    features: list[Tensor] = []
    answers = []

    def see(_path: str, _call: int, value: object) -> None:
        if isinstance(value, Tensor):
            features.append(_vectors(value, width, path))

    with watched(network.model, (path,), see, side="input"):
        for step, (make, size) in enumerate(batches):
            answers.append(network.logits(make(size, network.spec, generator)).argmax(1))
            told(step + 1, "generated images")
    given, answered = torch.cat(features), torch.cat(answers)
    if len(given) != len(answered):
        raise MethodError(f"head: {path} got {len(given)} inputs for {len(answered)} images")
    return given, answered


def _norms(weight: Tensor, logits: Tensor, told: Told) -> list[float | None]:
    """|s_k| of each class; None where no s reaches it, or nothing is left to be sent there."""
    inner = (weight @ weight.T).numpy()
    answers = logits.argmax(1)
    norms: list[float | None] = []
    for label in range(len(inner)):
        others = logits[answers != label]
        norm = None
        if len(others):
            demands = (others - others[:, label, None]).amax(0).numpy()
            dual = multipliers(inner, demands, label)
            norm = None if dual is None else math.sqrt(max(0.0, float(dual @ demands)))
        norms.append(norm or None)  # 0: they all lie on its border already
        told(label + 1, f"class {label}")
    return norms


def multipliers(inner: Array, demands: Array, label: int) -> Array | None:
    """The dual of the programme of one class k: s = sum_j u_j (w_k - w_j), and |s|^2 = sum_j u_j c_j.

    Lawson and Hanson's reduction of least distance to non-negative least squares ("Solving least squares problems",
    1974, chapter 23), on inner products: the smallest u^T (G + c c^T) u / 2 - c^T u, u >= 0, exists always. Few rows
    are active, so few columns of G are ever computed.

    Args:
        inner: (C, C), the products w_i^T w_j.
        demands: (C,), the c_j; that of k itself is not looked at.
        label: k.

    Returns:
        (C,) numbers from 0 up; None if no s meets the demands.
    """
    own = inner[label]
    squares = own[label] - 2 * own + inner.diagonal()
    # Rows that differ by rounding are equal: no s tells their classes apart.
    apart = squares > 1e-14 * inner.diagonal().max(initial=0)
    inverse = np.where(apart, 1 / np.sqrt(np.where(apart, squares, 1)), 0)  # rows of length 1 are easier to solve
    scale = np.where(apart, inverse, 1)
    c = demands * scale
    c[label] = 0
    unit = float(np.abs(c).max()) or 1.0
    c /= unit

    def column(j: int) -> Array:
        products = (own[label] - own - own[j] + inner[:, j]) * inverse * inverse[j]
        return np.asarray(products + c * c[j])

    u = _non_negative(column, c)
    room = 1 - float(c @ u)
    if room < 1e-8:  # s is 10,000 times as long as the hardest single demand asks
        return None
    return np.asarray(u / room * unit * scale)


def _non_negative(column: Callable[[int], Array], right: Array) -> Array:
    """The smallest u^T H u / 2 - right^T u for u >= 0, by Lawson and Hanson's active set; `column(j)` is H's."""
    u = np.zeros(len(right))
    active: list[int] = []
    columns = np.empty((len(right), 0))
    barred: set[int] = set()
    for _ in range(10 * len(right)):
        slope = right - columns @ u[active]
        slope[[*active, *barred]] = -np.inf
        new = int(slope.argmax())
        if slope[new] <= 1e-11:
            return u
        wider = np.column_stack([columns, column(new)])
        best = _solved(wider[[*active, new]], right[[*active, new]])
        if best[-1] <= 0:  # but for rounding, it is made up of the active ones
            barred.add(new)
            continue
        barred.clear()
        active, columns = [*active, new], wider
        while (best <= 0).any():
            now = u[active]
            steps = np.where(best <= 0, now / np.where(best <= 0, now - best, 1), np.inf)
            u[active] = now + steps.min() * (best - now)
            kept = steps > steps.min()
            u[np.array(active)[~kept]] = 0
            active, columns = [j for j, keep in zip(active, kept, strict=True) if keep], columns[:, kept]
            best = _solved(columns[active], right[active])
        u[active] = best
    raise MethodError(f"head: a programme of {len(right)} classes was not solved in {10 * len(right)} steps")


def _solved(matrix: Array, right: Array) -> Array:
    try:
        return np.asarray(np.linalg.solve(matrix, right), dtype=np.float64)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0], dtype=np.float64)


def classifier(graph: LayerGraph, model: nn.Module) -> tuple[Tensor, Tensor, str]:
    """The one linear classifier of a network: its rows (C, F) and biases (C,) in float64 on the CPU, and its path.

    Raises:
        MethodError: there is no one linear classifier.
    """
    path = graph.classifier
    modules: dict[str, Any] = dict(model.named_modules())
    if path is None or path not in modules:
        why = graph.no_classes or ", ".join(graph.outputs) or "no single layer makes the answers"
        raise MethodError(f"head reads the classifier, and this network has no single one: {why}")
    module = modules[path]
    convolution = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if not isinstance(module, nn.Linear) and not convolution:
        raise MethodError(f"head: {path}: expected a Linear or a 1x1 convolution, got {type(module).__name__}")
    if convolution and (module.groups > 1 or module.weight[0, 0].numel() > 1):
        raise MethodError(f"head: {path}: expected a 1x1 convolution without groups, got {module}")
    weight = module.weight.detach().flatten(1).to("cpu", torch.float64)
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise MethodError(f"head: {path}: its weights contain NaN or infinity")
    return weight, bias, path


def _vectors(x: Tensor, width: int, path: str) -> Tensor:
    """(N, F), or a map (N, F, ...) or a sequence (N, ..., F) whose mean is taken, as (N, F) float64 on the CPU."""
    x = x.detach().to("cpu", torch.float64)
    if x.ndim > 2:
        x = x.flatten(2).mean(2) if x.shape[1] == width else x.flatten(1, -2).mean(1)
    if x.ndim != 2 or x.shape[1] != width or not bool(torch.isfinite(x).all()):
        raise MethodError(f"head: {path}: expected one finite vector of {width} numbers an image, got {tuple(x.shape)}")
    return x
