"""Whether a norm's running means are what the weights before it produce: evidence for a pair that names propose.

A BatchNorm that directly follows a layer keeps the means of w_j x + b_j, and a mean is linear: with s_j the sum of w_j
over its places and m the mean input, mean_j - b_j = s_j m, for one and the same m in every channel. Behind a ReLU
(and nearly so behind its relatives) m is not negative. So the best m >= 0 must explain the running means, and must not
explain them once channels are shuffled. A norm of something else - of the layer's input, of a sum, of what an
activation made of the output - fails that. Nothing but the file is needed; docs/pairing.md says how often it errs.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from unbackdoor.findings.layers import Layer, Norm

Verdict = Literal["fits", "differs", "silent"]

#: What the weights may leave unexplained of the running means, relative to what they leave of shuffled ones.
_UNEXPLAINED = 0.05
#: The same where the mean input is not fitted, but taken from the norm before.
_UNEXPLAINED_BY_NORM = 0.25
#: Sizes of maps that are tried, since padding counts where they are small, as behind many poolings: large, 4, 2, 1.
_SIZES = (math.inf, 4.0, 2.0, 1.0)
#: Further from a fit than this, no other size is tried.
_NEAR = 0.3
#: Below this the shuffled ones are explained as well: the test has no power.
_POWER = 0.05
#: Running means smaller than this, in running standard deviations, are too close to zero to tell anything.
_SIGNAL = 0.2
#: Fewer channels fit by chance.
_CHANNELS = 8
#: More input channels are not tried, for time.
_INPUTS = 2048
#: Pairs of one line of code that differ, relative to those that fit, before neither is believed.
_FEW = 0.25
_SHUFFLES = 15
_STEPS = 100
#: Of every layer this share of channels is not looked at: a few may have been edited since.
_KEPT = 0.95


def judge(pairs: Sequence[tuple[Layer, Norm]], tensors: Mapping[str, Tensor]) -> dict[str, Verdict]:
    """Layer path -> what the statistics say of its pair.

    Pairs are not judged each by itself. Layers of one name in blocks of one kind were written by one line of code: a
    fit among them is chance where most say nothing, or where more than a few differ. And a pair of which its own
    statistics say nothing (few channels, an input whose mean is zero) is borne out by the others, which names and order
    gave in the same way, if none of them differs and at least as many fit.

    Args:
        pairs: layer and norm, of equally many channels, as names and order propose them.
        tensors: of the network.
    """
    norms = [None, *(norm for _, norm in pairs)]
    found = {
        layer.path: _judge(layer, norm, tensors, before) for (layer, norm), before in zip(pairs, norms, strict=False)
    }
    lines: dict[str, list[Verdict]] = defaultdict(list)
    for path, verdict in found.items():
        lines[_line_of_code(path)].append(verdict)
    for path, verdict in found.items():
        alike = lines[_line_of_code(path)]
        fits, differs, silent = (alike.count(one) for one in ("fits", "differs", "silent"))
        if verdict == "fits" and (differs > _FEW * fits or silent > fits):
            found[path] = "silent"
    verdicts = list(found.values())
    if "differs" not in verdicts and verdicts.count("fits") >= max(1, verdicts.count("silent")):
        touched = {layer.path for layer, norm in pairs if _is_touched(norm, tensors)}
        return {path: "fits" if path in touched else verdict for path, verdict in found.items()}
    return found


def _line_of_code(path: str) -> str:
    """A path without the numbers of blocks: layer1.0.conv2 -> layer*.*.conv2, features.3 -> features.*."""
    head, dot, last = path.rpartition(".")
    return re.sub(r"\d+", "*", head) + dot + ("*" if last.isdigit() else last)


def _judge(layer: Layer, norm: Norm, tensors: Mapping[str, Tensor], before: Norm | None) -> Verdict:
    names = (layer.weight, layer.bias, norm.mean, norm.var)
    if layer.parametrization is not None or layer.transposed or not _is_touched(norm, tensors):
        return "silent"
    if not all(name is None or is_plain(tensors[name]) for name in names):
        return "silent"
    weight = tensors[layer.weight].detach().to("cpu", torch.float64)
    mean, var = (tensors[name].detach().to("cpu", torch.float64) for name in (norm.mean, norm.var))
    shift = mean if layer.bias is None else mean - tensors[layer.bias].detach().to("cpu", torch.float64)
    length = weight.flatten(1).norm(dim=1)
    sound = torch.isfinite(length) & (length > 0) & torch.isfinite(shift) & (var > 0) & torch.isfinite(var)
    if int(sound.sum()) < _CHANNELS or float((shift / var.sqrt())[sound].square().mean().sqrt()) < _SIGNAL:
        return "silent"
    # Each channel's equation is divided by its filter's length, as its error grows with that.
    filters, target = weight[sound] / length[sound].view(-1, *(1,) * (weight.ndim - 1)), shift[sound] / length[sound]
    ratios: list[float] = []
    for size in _SIZES if max(weight.shape[2:], default=1) > 1 else _SIZES[:1]:
        for ratio in _unexplained(_sums(filters, size), target):
            if ratio <= _UNEXPLAINED:
                return "fits"
            ratios.append(ratio)
        if not ratios or min(ratios) > _NEAR:
            break
    if ratios or (bool((mean[sound] > 0).all()) and len(target) >= 2 * _CHANNELS):  # as behind an activation
        return "differs"
    known = None if before is None else _mean_behind(before, tensors)
    if known is not None and len(known) == weight.shape[1]:
        given = _sums(filters, _SIZES[0]) @ known
        if _ratio(lambda targets: _along(given, targets), target) <= _UNEXPLAINED_BY_NORM:
            return "fits"
    return "silent"


def _sums(filters: Tensor, size: float) -> Tensor:
    """(C_out, C_in): filters summed over their places, each weighed by how often padding lets it see the input.

    Args:
        filters: (C_out, C_in, *kernel).
        size: of the maps that they are applied to.
    """
    for dim, places in enumerate(filters.shape[2:], 2):
        distance = (torch.arange(places, dtype=torch.float64) - (places - 1) / 2).abs()
        seen = (1 - distance / size).clamp_min(0)
        filters = filters * seen.view(-1, *(1,) * (filters.ndim - 1 - dim))
    return filters.flatten(2).sum(2) if filters.ndim > 2 else filters


def _unexplained(sums: Tensor, target: Tensor) -> Iterator[float]:
    """What the best mean input leaves unexplained, relative to what it leaves of shuffled targets.

    One number for each thing that the layer may be; none where shuffled targets are explained too, as with more input
    channels than output channels.

    Args:
        sums: (C_out, C_in) one row an equation.
        target: (C_out,) what it should come to.
    """
    rows, inputs = sums.shape
    ways: list[Callable[[Tensor], Tensor]] = []
    if inputs <= min(2 * rows, _INPUTS):
        ways.append(lambda targets: _nonnegative(sums[None], targets[None])[0])
    if 3 * inputs <= 2 * rows:  # then a mean input of any sign is a claim, too
        ways.append(lambda targets: sums @ torch.linalg.lstsq(sums, targets, driver="gelsd").solution - targets)
    if inputs < rows and rows % inputs == 0:  # a file does not say groups: as many as a layer of equal width has
        groups = (rows // inputs, inputs, -1)
        ways.append(lambda t: _nonnegative(sums.reshape(groups), t.reshape(groups)).reshape(rows, -1))
    for way in ways:
        ratio = _ratio(way, target)
        if math.isfinite(ratio):
            yield ratio


def _ratio(explain: Callable[[Tensor], Tensor], target: Tensor) -> float:
    """The share that is left of a target, relative to the usual share of shuffled ones; infinite without power.

    Args:
        explain: (C_out, k) targets -> what is left of them.
        target: (C_out,).
    """
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(target), generator=generator) for _ in range(_SHUFFLES)]
    targets = torch.stack([target, *(target[order] for order in orders)], 1)
    left = _left(explain(targets), targets)
    usual = float(left[1:].median())
    ratio = float(left[0]) / usual if usual >= _POWER else math.inf
    return ratio if math.isfinite(ratio) else math.inf


def _along(given: Tensor, targets: Tensor) -> Tensor:
    """(C_out, k): what the best multiple of one vector leaves of each target."""
    scale = given @ targets / given.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return given[:, None] * scale - targets


def _mean_behind(norm: Norm, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """(C,): the mean of what a norm and a ReLU put out, were the norm's input Gaussian."""
    if (
        norm.weight is None
        or norm.bias is None
        or not (is_plain(tensors[norm.weight]) and is_plain(tensors[norm.bias]))
    ):
        return None
    gamma, beta = (tensors[name].detach().to("cpu", torch.float64) for name in (norm.weight, norm.bias))
    spread = gamma.abs().clamp_min(1e-12)
    z = beta / spread
    mean: Tensor = spread * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) + beta * torch.special.ndtr(z)
    return mean


def _left(residual: Tensor, targets: Tensor) -> Tensor:
    """(shuffles + 1,): the share of the squares that is left, over the channels that fit best."""
    kept = max(1, int(_KEPT * len(targets)))
    left, all_of_it = (x.square().sort(0).values[:kept].sum(0) for x in (residual, targets))
    return left / all_of_it.clamp_min(torch.finfo(torch.float64).tiny)


def _nonnegative(matrix: Tensor, targets: Tensor) -> Tensor:
    """(B, n, k): what the best X >= 0 leaves of `matrix` X = `targets`, by accelerated projected gradients.

    Args:
        matrix: (B, n, p).
        targets: (B, n, k).
    """
    gram, right = matrix.mT @ matrix, matrix.mT @ targets
    norm = torch.linalg.matrix_norm(gram, ord=math.inf, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    fourth = torch.linalg.matrix_power(gram / norm, 4)
    largest = norm * torch.linalg.matrix_norm(fourth, keepdim=True) ** 0.25  # (sum of eigenvalues^8)^(1/8), no less
    step = 1 / largest.clamp_min(torch.finfo(torch.float64).tiny)
    best = ahead = torch.zeros_like(right)
    pace = 1.0
    gram, right = gram * step, right * step
    for _ in range(_STEPS):
        following = (ahead - gram @ ahead).add_(right).clamp_min_(0)
        faster = (1 + math.sqrt(1 + 4 * pace * pace)) / 2
        ahead = following + (pace - 1) / faster * (following - best)
        best, pace = following, faster
    return matrix @ best - targets


def _is_touched(norm: Norm, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a norm's statistics are other than they start from: mean 0, variance 1."""
    mean, var = tensors[norm.mean], tensors[norm.var]
    if not is_plain(mean) or not is_plain(var):
        return False
    return bool((mean != 0).any()) and bool((var != 1).any())


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's numbers can be computed with."""
    plain = not tensor.is_meta and tensor.layout == torch.strided and not tensor.is_quantized
    return plain and tensor.is_floating_point() and tensor.element_size() > 1
