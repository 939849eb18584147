"""Surrogates: images for a method that is given none. Procedural ones, and class impressions made from the network.

Two procedural families have natural statistics: dead leaves (Lee, Mumford & Huang, "Occlusion models for natural
images", IJCV 2001; as training images: Baradad et al., "Learning to see by looking at noise", NeurIPS 2021) and images
with a random power spectrum and colour covariance (the same paper). Class impressions (Nayak et al., "Zero-shot
knowledge distillation", ICML 2019) are optimised until the network is sure of a class, here with the match of
normalisation statistics of Yin et al., "Dreaming to distill", CVPR 2020.

All images are pixels in [0, 1], (N, C, H, W) float32 on the CPU; an `InputSpec` turns them into what the network takes.
Every random number comes from the generator: the same seed gives the same images.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.defender.case import Progress, silent
from unbackdoor.defender.on_pixels import OnPixels, gradients
from unbackdoor.inputs import InputSpec

#: Pixels a side up to which procedural images are drawn; larger ones are enlarged from there.
LARGEST = 96
#: Images optimised at a time.
BATCH = 250
#: Steps of Adam. SHORT is enough to compare classes; after LONG the network is sure of nearly every impression.
SHORT, LONG = 50, 100


def dead_leaves(count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
    """Discs, rectangles, triangles and quadrilaterals that cover each other until nothing is bare.

    Radii have a density proportional to r^-3 between .03 and 1 of the side, so that the image looks alike at every
    scale, as natural images do; each image has a few colours of its own.
    """
    side = min(LARGEST, max(spec.shape[1:]))
    image = torch.zeros(count, spec.shape[0], side, side)
    bare = torch.ones(count, side, side, dtype=torch.bool)
    ys, xs = (axis.float() / side for axis in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    palette = torch.rand(count, 8, spec.shape[0], generator=generator)
    tint = torch.rand(count, 1, spec.shape[0], generator=generator)
    palette = palette * 0.7 + tint * 0.3
    every = torch.arange(count)
    for _ in range(400):
        u = torch.rand(count, 9, generator=generator)
        radius = (0.03**-2 + u[:, 0] * (1 - 0.03**-2)) ** -0.5
        dy, dx = ys[None] - u[:, 1, None, None] * 1.2 + 0.1, xs[None] - u[:, 2, None, None] * 1.2 + 0.1
        angle = u[:, 3] * 2 * math.pi
        cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
        a, b = cos * dx + sin * dy, cos * dy - sin * dx
        r = radius[:, None, None]
        stretch = 0.3 + 0.7 * u[:, 4, None, None]
        disc = a**2 + b**2 <= r**2
        box = (a.abs() <= r) & (b.abs() <= r * stretch)
        triangle = (b >= -r * stretch) & (b <= r) & (a.abs() <= (r - b) / 2)
        kind = (u[:, 5] * 3).long()[:, None, None]
        leaf = torch.where(kind == 0, disc, torch.where(kind == 1, box, triangle)) & bare
        colour = palette[every, (u[:, 6] * 8).long()]
        shade = colour + 0.1 * (torch.rand(count, spec.shape[0], generator=generator) - 0.5)
        image = torch.where(leaf[:, None], shade[:, :, None, None], image)
        bare &= ~leaf
        if not bool(bare.any()):
            break
    image = torch.where(bare[:, None], palette[:, 0, :, None, None], image)
    return _sized(image, spec).clamp(0, 1)


def random_spectra(count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
    """Noise whose power falls with a random slope (.5 to 3.5), in random colours, with random contrast."""
    side = min(LARGEST, max(spec.shape[1:]))
    channels = spec.shape[0]
    slope = 0.5 + 3 * torch.rand(count, 1, 1, 1, generator=generator)
    fy, fx = torch.fft.fftfreq(side)[:, None] * side, torch.fft.rfftfreq(side)[None] * side
    frequency = (fy**2 + fx**2).sqrt().clamp_min(1)
    noise = torch.randn(count, channels, side, side, generator=generator)
    shaped = torch.fft.irfft2(torch.fft.rfft2(noise) * frequency ** (-slope / 2), s=(side, side))
    shaped = shaped / shaped.flatten(1).std(1)[:, None, None, None].clamp_min(1e-6)
    mixing = torch.randn(count, channels, channels, generator=generator) * 0.35 + torch.full((channels, channels), 0.55)
    shaped = torch.einsum("nij,njhw->nihw", mixing, shaped)
    centre = 0.25 + 0.5 * torch.rand(count, channels, 1, 1, generator=generator)
    contrast = 0.08 + 0.2 * torch.rand(count, 1, 1, 1, generator=generator)
    return _sized(centre + contrast * shaped, spec).clamp(0, 1)


def _sized(image: Tensor, spec: InputSpec) -> Tensor:
    if image.shape[-2:] == spec.shape[1:]:
        return image
    return F.interpolate(image, size=spec.shape[1:], mode="bilinear", align_corners=False, antialias=True)


@dataclass(frozen=True, kw_only=True)
class Impressions:
    """Class impressions.

    Attributes:
        images: (N, C, H, W) in [0, 1].
        labels: (N,) the class that each was made for.
        answers: (N,) what the network answers.
    """

    images: Tensor
    labels: Tensor
    answers: Tensor


def class_images(
    shown: OnPixels, count: int, generator: torch.Generator, *, steps: int = SHORT, progress: Progress = silent
) -> Impressions:
    """About `count` impressions: as many of each class, or one each of as many classes as that, drawn at random.

    Args:
        shown: the network.
        count: of images.
        generator: of everything.
        steps: of Adam.
        progress: called with (steps done, steps in all, a note).
    """
    classes = shown.classes
    if classes <= count:
        chosen, per_class = list(range(classes)), round(count / classes)
    else:
        chosen, per_class = torch.randperm(classes, generator=generator)[:count].tolist(), 1
    return impressions(
        shown.model, shown.spec, chosen, per_class=per_class, steps=steps, generator=generator, progress=progress
    )


def impressions_of(
    shown: OnPixels, label: int, count: int, generator: torch.Generator, progress: Progress = silent
) -> Tensor:
    """(count, C, H, W) impressions of one class; the network may take some for another.

    They are made among as many of other classes, drawn at random: the statistics of the normalisations are those of all
    classes together. They have more steps than where all classes are compared.

    Args:
        shown: the network.
        label: the class.
        count: of images.
        generator: of everything.
        progress: called with (steps done, steps in all, a note).
    """
    others = torch.randint(shown.classes - 1, (count,), generator=generator)
    others += others >= label
    wanted = torch.stack([torch.full_like(others, label), others], 1).flatten().tolist()  # by turns: both in each part
    made = impressions(shown.model, shown.spec, wanted, per_class=1, steps=LONG, generator=generator, progress=progress)
    return made.images[::2]


def impressions(
    model: nn.Module,
    spec: InputSpec,
    classes: Sequence[int],
    *,
    per_class: int = 20,
    steps: int = SHORT,
    lr: float = 0.1,
    match: float = 1.0,
    matched: float = 1 / 3,
    variation: float = 2e-3,
    shift: int = 2,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Impressions:
    """Images of which the network is sure, that look to its normalisations as its training images did.

    Adam on the logit of the pixel, from dead leaves. The loss is the cross-entropy to the wanted class, plus `match`
    times the distance to the running statistics, plus `variation` times the total variation. The distance is squared,
    of means and deviations, in units of the layer's own deviation, and averaged over channels and BatchNorms. Each step
    takes other BatchNorms for it, and shifts and mirrors the images at random. A network without running statistics has
    nothing to match. A float32 network is run in bfloat16 where the hardware is faster at it (`precision`).

    Args:
        model: in eval mode, on any device and in any precision; not changed.
        classes: wanted, `per_class` images of each.
        matched: share of the BatchNorms that a step matches, drawn anew; at least one is.
        progress: called with (steps done, steps in all, a note).
    """
    labels = torch.tensor(list(classes)).repeat(per_class)
    made, answers = [], []
    shown = OnPixels(model, spec)
    with _statistics(model) as statistics:
        parts = torch.split(labels, BATCH)
        for number, part in enumerate(parts):
            start = dead_leaves(len(part), spec, generator).clamp(0.05, 0.95)
            free = torch.logit(start).to(shown.device, memory_format=torch.channels_last).requires_grad_()
            wanted = part.to(shown.device)
            optimiser = torch.optim.Adam([free], lr=lr)
            for step in range(steps):
                for group in optimiser.param_groups:
                    group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
                statistics.draw(matched if match else 0, generator)
                pixels = torch.sigmoid(free)
                loss = F.cross_entropy(shown(_moved(pixels, shift, generator)), wanted)
                if statistics.distances:
                    loss = loss + match * torch.stack(statistics.distances).mean()
                loss = loss + variation * total_variation(pixels)
                (free.grad,) = gradients(loss, [free])
                optimiser.step()
                progress(number * steps + step + 1, len(parts) * steps, "class impressions")
            statistics.draw(0, generator)
            made.append(torch.sigmoid(free.detach()).cpu().contiguous())
            answers.append(shown.logits(made[-1]).argmax(1))
    return Impressions(images=torch.cat(made), labels=labels, answers=torch.cat(answers))


def total_variation(pixels: Tensor) -> Tensor:
    """Mean over the images of the sum of squared differences of neighbours."""
    rows, columns = pixels.diff(dim=2).square(), pixels.diff(dim=3).square()
    return (rows.flatten(1).sum(1) + columns.flatten(1).sum(1)).mean()


def _moved(pixels: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """All images shifted alike by up to `shift` pixels and mirrored by one coin."""
    dy, dx = torch.randint(-shift, shift + 1, (2,), generator=generator).tolist()
    pixels = torch.roll(pixels, (dy, dx), (2, 3))
    return pixels.flip(3) if torch.rand((), generator=generator) < 0.5 else pixels


class _Statistics:
    """How far what the drawn BatchNorms are given is from their running statistics, one number a call.

    Attributes:
        distances: of the forward passes since the last draw.
    """

    def __init__(self, norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> None:
        self.norms = norms
        self.distances: list[Tensor] = []
        self._drawn: frozenset[nn.Module] = frozenset()

    def draw(self, share: float, generator: torch.Generator) -> None:
        """Forget the distances, and choose which norms are looked at from now on; at least one, but none for 0."""
        count = min(len(self.norms), max(1, round(share * len(self.norms)))) if share else 0
        order = torch.randperm(len(self.norms), generator=generator) if count else torch.empty(0)
        self._drawn = frozenset(self.norms[int(i)] for i in order[:count])
        self.distances = []

    def see(self, module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        """The hook of a norm, which may be given more than its input, or that by name."""
        if module not in self._drawn:
            return
        x = [*inputs, *named.values()][0]
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        assert module.running_mean is not None
        assert module.running_var is not None
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        var, mean = torch.var_mean(x.to(exact), [0, *range(2, x.ndim)], correction=0)
        std = (module.running_var.to(exact) + module.eps).sqrt()
        off = ((mean - module.running_mean) / std).square() + (((var + module.eps).sqrt() - std) / std).square()
        self.distances.append(off.mean())


@contextlib.contextmanager
def _statistics(model: nn.Module) -> Iterator[_Statistics]:
    """Within, each forward pass adds the distances of the BatchNorms that were drawn."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    statistics = _Statistics(norms)
    handles = [module.register_forward_pre_hook(statistics.see, with_kwargs=True) for module in norms]
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()
