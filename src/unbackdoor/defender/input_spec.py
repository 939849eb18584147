"""What images a network takes: their size and normalisation, from what is known, or estimated from its first norm.

A method without images makes some (`surrogates`), as pixels in [0, 1], and must show them to the network as it was
shown its training images. Where nothing says how those were normalised, the first BatchNorm remembers: its running
mean and variance are those of a convolution of the training images, and photographs are much alike. So the mean and the
deviation of what the network was shown follow by least squares, and the normalisation from the mean and the deviation
that photographs have before it.

    running_mean_j = bias_j + sum_c m_c A_jc
    running_var_j  = s^2 sum_cdkl w_jck G_cd R_kl w_jdl + edge_j

    A_jc    sum of the filter's taps, each times the share of places where it is on the image and not on its border
    G, R    correlations: of colours, of pixels at the distance of two taps (and the share of places with both inside)
    edge_j  variance of what the mean alone gives, because of the border
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from unbackdoor.defender.case import Case
from unbackdoor.errors import MethodError, first_line
from unbackdoor.graph.activations import watched
from unbackdoor.graph.modules import is_batch_norm, runs_torch_forward
from unbackdoor.inputs import InputSpec, Normalisation

#: Mean and deviation of photographs' pixels in [0, 1].
_MEAN, _STD = 0.46, 0.25
#: Correlation of two colours of a pixel, and of pixels next to each other where 32 are a side.
_COLOURS, _NEIGHBOURS = 0.9, 0.93
#: A normalisation is taken for a well-known one if the pixels then had a mean this close to that of photographs, and a
#: deviation within this factor. Data sets' means are between .2 and .6 (dark traffic signs: .32, and .28 with the black
#: borders of cropping). Deviations are between .2 and .3, and the estimate is within a quarter. Well-known
#: normalisations are a factor of 2 from each other.
_MEAN_OFF, _STD_FACTOR = 0.25, 1.6
#: Filters whose taps cancel say little of the mean; this share of the strongest direction draws the colours together.
_GREY = 0.03

_CIFAR10 = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.243, 0.261))
_IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
#: Pixels a side up to which a standardised network is taken for one of small images.
_SMALL = 64


@runtime_checkable
class _DataSet(Protocol):
    """What is read of a data set's spec: `data.DatasetSpec`, which methods without data must not import."""

    @property
    def name(self) -> str: ...
    @property
    def channels(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


@dataclass(frozen=True, kw_only=True)
class FoundSpec:
    """The images that a network takes, and how that is known.

    Attributes:
        spec: the images.
        shape_from: "of the data set cifar10", "given", ...
        normalisation_from: the same, or "estimated from bn1, ...", "assumed, ...".
    """

    spec: InputSpec
    shape_from: str
    normalisation_from: str

    @property
    def note(self) -> str:
        """One sentence for a report."""
        mean, std = (",".join(f"{x:.4g}" for x in values) for values in (self.spec.mean, self.spec.std))
        size = "x".join(map(str, self.spec.shape))
        return f"images {size} ({self.shape_from}), mean {mean} and std {std} ({self.normalisation_from})"


def input_spec(case: Case, model: nn.Module) -> FoundSpec:
    """The images that a case's network takes.

    The size is the example's, else the data set's, else what timm says. The normalisation is the given one, else the
    data set's, else estimated from the first norm, else what timm says, else assumed.

    Args:
        case: what is known.
        model: its network in eval mode, for example a working copy; it is run once.

    Raises:
        MethodError: the size is not known, or the network fails on such images.
        SettingError: the normalisation, given or the data set's, has another number of channels.
    """
    config = getattr(case.network, "pretrained_cfg", None)
    config = config if isinstance(config, dict) else {}
    shape, shape_from = _shape(case, config)
    seen = _first_norm(model, shape)  # which also shows that the network takes images of this size
    timm = _timm(config, shape)
    if case.normalisation is not None:
        spec, reason = case.normalisation.spec(shape), "given"
    elif isinstance(case.spec, _DataSet):
        spec = Normalisation(mean=tuple(case.spec.mean), std=tuple(case.spec.std)).spec(shape)
        reason = f"of the data set {case.spec.name}"
    elif seen is not None:
        spec, reason = _told(seen, shape, timm)
    else:
        spec, reason = _assumed(shape, timm)
    return FoundSpec(spec=spec, shape_from=shape_from, normalisation_from=reason)


def _shape(case: Case, config: dict[str, Any]) -> tuple[tuple[int, int, int], str]:
    for value in [*tree_leaves(case.example), case.images]:
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 4:
            return (value.shape[1], value.shape[2], value.shape[3]), "given"
    if isinstance(case.spec, _DataSet):
        return (case.spec.channels, case.spec.size, case.spec.size), f"of the data set {case.spec.name}"
    size = config.get("input_size")
    if isinstance(size, tuple | list) and len(size) == 3 and all(type(x) is int and x > 0 for x in size):
        return (size[0], size[1], size[2]), "as timm builds it"
    raise MethodError(
        "the size of the images that the network takes is not known: give it with --input 3x32x32 (example=...), or "
        "name a known data set with --data"
    )


def _timm(config: dict[str, Any], shape: tuple[int, int, int]) -> InputSpec | None:
    """The normalisation that timm says the network is built for."""
    mean, std = (tuple(config.get(name) or ()) for name in ("mean", "std"))
    return InputSpec(shape=shape, mean=mean, std=std) if len(mean) == len(std) == shape[0] else None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The images that a network was shown in training, by its first norm.

    Attributes:
        mean, std: (channels,) float64 of what the network was given.
        norm: the path of that norm.
    """

    mean: Tensor
    std: Tensor
    norm: str


def _told(seen: Seen, shape: tuple[int, int, int], timm: InputSpec | None) -> tuple[InputSpec, str]:
    """The normalisation that made photographs into what the first norm saw."""
    if timm is not None and _distance(timm, seen) <= 1:
        return timm, f"that of timm, near the estimate from {seen.norm}"
    standard, of = _standard(shape)
    known = [
        (Normalisation(mean=(0.0,), std=(1.0,)).spec(shape), "none, pixels from 0 to 1"),
        (Normalisation(mean=(0.5,), std=(0.5,)).spec(shape), "pixels from -1 to 1"),
        (Normalisation(mean=(0.0,), std=(1 / 255,)).spec(shape), "none, pixels from 0 to 255"),
        (standard, of),
    ]
    spec, title = min(known, key=lambda pair: _distance(pair[0], seen))
    if _distance(spec, seen) <= 1:
        return spec, f"{title}, near the estimate from {seen.norm}"
    std = (_STD / seen.std).tolist()
    mean = (_MEAN - seen.mean * _STD / seen.std).tolist()
    return InputSpec(shape=shape, mean=tuple(mean), std=tuple(std)), f"estimated from {seen.norm}"


def _assumed(shape: tuple[int, int, int], timm: InputSpec | None) -> tuple[InputSpec, str]:
    why = "assumed, because no BatchNorm tells of its images"
    if timm is not None:
        return timm, f"{why}: that of timm; --mean and --std say another"
    spec, title = _standard(shape)
    return spec, f"{why}, and most networks take standardised ones: {title}; --mean and --std say another"


def _standard(shape: tuple[int, int, int]) -> tuple[InputSpec, str]:
    """The mean and deviation of a data set that a network of such images may have been trained on: they differ little,
    by less than any estimate here."""
    if shape[0] != 3:
        return Normalisation(mean=(_MEAN,), std=(_STD,)).spec(shape), "that of photographs"
    if max(shape[1:]) <= _SMALL:
        return _CIFAR10.spec(shape), "that of CIFAR-10"
    return _IMAGENET.spec(shape), "that of ImageNet"


def _distance(spec: InputSpec, seen: Seen) -> float:
    """How unlike photographs the pixels were, if a network that saw this was given them so; above 1 is too unlike."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (spec.mean, spec.std))
    off = float((mean + std * seen.mean).mean()) - _MEAN
    factor = float((std * seen.std / _STD).log().mean())
    return max(abs(off) / _MEAN_OFF, abs(factor) / math.log(_STD_FACTOR))


@torch.no_grad()
def _first_norm(model: nn.Module, shape: tuple[int, int, int]) -> Seen | None:
    """What the first BatchNorm says of the network's images; None where none reads them, or a convolution of them.

    What it reads is found by running the network on noise, and comparing tensors.

    Raises:
        MethodError: the network fails on such images.
    """
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    noise = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(weight)
    modules = dict(model.named_modules())
    convolutions = [path for path, module in modules.items() if _is_plain(module)]
    norms = [path for path, module in modules.items() if is_batch_norm(module) and _has_statistics(module)]
    read: dict[str, tuple[Tensor, Tensor]] = {}
    outputs: list[tuple[str, object]] = []
    found: list[tuple[str, str | None, tuple[Tensor, Tensor]]] = []

    def given(path: str, _call: int, value: object) -> None:
        if not found and (affine := _affine(noise, value)) is not None:
            if path in norms:
                found.append((path, None, affine))
            else:
                read[path] = affine
        if not found and path in norms and isinstance(value, Tensor):
            source = next((p for p, out in outputs if isinstance(out, Tensor) and _same(out, value)), None)
            if source is not None:
                found.append((path, source, read[source]))

    def returned(path: str, _call: int, value: object) -> None:
        if not found and path in read:
            outputs.append((path, value))

    with (
        watched(model, [*convolutions, *norms], given, side="input"),
        watched(model, convolutions, returned, side="output"),
    ):
        try:
            model(noise)
        except Exception as error:
            size = "x".join(map(str, shape))
            raise MethodError(
                f"the network fails on images of {size}: {first_line(error)}; give their size with --input "
                "(example=...)"
            ) from error
    if not found:
        return None
    path, source, (scale, shift) = found[0]
    norm = modules[path]
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.running_var, Tensor)
    mean, var = norm.running_mean.double().cpu(), norm.running_var.double().cpu()
    std = var.sqrt()
    if source is not None:
        layer = modules[source]
        assert isinstance(layer, nn.Conv2d)
        mean, std = read_back(layer, mean, var, shape[1:])
    mean, std = (mean - shift) / scale, std / scale.abs()
    if not bool(torch.isfinite(mean).all() & torch.isfinite(std).all() & (std > 0).all()):
        return None
    return Seen(mean=mean, std=std, norm=path)


def read_back(layer: nn.Conv2d, mean: Tensor, var: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean and deviation a channel of images, from the mean and variance of their convolution.

    Args:
        layer: the convolution.
        mean, var: (O,) float64, of its output.
        size: height and width of the images.

    Returns:
        mean, deviation: (C,) float64; one deviation for all channels.
    """
    weight = layer.weight.detach().double().cpu().flatten(2)  # (O, C, K)
    channels = weight.shape[1]
    if layer.bias is not None:
        mean = mean - layer.bias.detach().double().cpu()
    together, distance = _taps(layer, size)
    taps = together.diagonal()
    sums = (weight * taps).sum(2)  # (O, C)
    scale = torch.where(var > 1e-6 * var.max(), var.rsqrt(), 0)  # a filter that answers the same always says nothing
    rows = sums * scale[:, None]
    grey = torch.eye(channels, dtype=torch.float64) - 1 / channels
    grey = _GREY * torch.linalg.matrix_norm(rows, 2) * grey
    wanted = torch.cat([mean * scale, torch.zeros(channels, dtype=torch.float64)])
    images = torch.linalg.lstsq(torch.cat([rows, grey]), wanted[:, None], driver="gelsd").solution[:, 0]
    colours = torch.full((channels, channels), _COLOURS, dtype=torch.float64).fill_diagonal_(1)
    pixels = (_NEIGHBOURS ** (32 / max(size))) ** distance * together
    unit = torch.einsum("ock,cd,kl,odl->o", weight, colours, pixels, weight)
    level = torch.einsum("ock,c->ok", weight, images)
    edge = torch.einsum("ok,kl,ol->o", level, together, level) - (sums @ images).square()
    squared = (var - edge).clamp_min(0) / unit
    # Filters that look at edges say how sharp the images are; those that add up their taps, how large.
    sure = (torch.einsum("oc,cd,od->o", sums, colours, sums) / unit).clamp(0, 1).square()
    sure = torch.where(torch.isfinite(squared) & (scale > 0), sure.nan_to_num(0), 0)
    return images, _weighted_median(squared.nan_to_num(0, 0, 0), sure).sqrt().expand(channels)


def _taps(layer: nn.Conv2d, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(K, K) in what share of places two taps of a filter are both on the image; and how many pixels are between."""
    height, width = layer.weight.shape[2:]
    count = height * width
    if layer.padding_mode == "zeros":
        each = torch.eye(count, dtype=torch.float64).view(count, 1, height, width)
        one = torch.ones(1, 1, *size, dtype=torch.float64)
        inside = F.conv2d(one, each, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)[0].flatten(1)
    else:  # the border repeats the image
        inside = torch.ones(count, 1, dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([rows.flatten() * layer.dilation[0], columns.flatten() * layer.dilation[1]], 1).double()
    return inside @ inside.T / inside.shape[1], torch.cdist(at, at)


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    order = values.argsort()
    passed = weights[order].cumsum(0)
    return values[order][int((passed < passed[-1] / 2).sum().clamp_max(len(values) - 1))]


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a convolution of all channels together, with the weight that it holds."""
    if not isinstance(module, nn.Conv2d) or module.groups != 1 or not runs_torch_forward(module):
        return False
    return bool(torch.isfinite(module.weight).all())


def _has_statistics(norm: nn.Module) -> bool:
    """Whether a norm has seen images: it holds numbers, and not the 0 and 1 that it was made with."""
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        return False
    usable = torch.isfinite(mean).all() & torch.isfinite(var).all() & (var >= 0).all() & (var > 0).any()
    return bool(usable & ((mean != 0).any() | (var != 1).any()))


def _affine(images: Tensor, value: object) -> tuple[Tensor, Tensor] | None:
    """(scale, shift), each (C,), by which a value is the images a channel; None where it is something else."""
    if not isinstance(value, Tensor) or value.shape != images.shape:
        return None
    x, y = (tensor.double().cpu().transpose(0, 1).flatten(1) for tensor in (images, value))
    x_mean, y_mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    scale = ((x - x_mean) * (y - y_mean)).sum(1) / (x - x_mean).square().sum(1)
    shift = (y_mean - scale[:, None] * x_mean)[:, 0]
    off = (y - scale[:, None] * x - shift[:, None]).abs().amax(1)
    return (scale, shift) if bool(((off <= 0.01 * scale.abs()) & (scale != 0)).all()) else None


def _same(output: Tensor, value: Tensor) -> bool:
    return output is value or (output.shape == value.shape and torch.equal(output, value))
