"""A network that answers pixels, as what works with surrogate images runs it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from unbackdoor.defender.case import Case
from unbackdoor.defender.input_spec import input_spec
from unbackdoor.errors import ArchitectureError, MethodError, first_line
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph.resumed import resumed, same
from unbackdoor.inputs import InputSpec
from unbackdoor.outputs import logits_of
from unbackdoor.precision import layout, training_dtype
from unbackdoor.prune import copy_model

#: Images in a forward pass without gradients.
CHUNK = 256
#: Pixels of all images in one with gradients, where triggers of many windows or classes are searched at a time.
AT_ONCE = 2**18
#: Floating-point operations that an image takes, forwards, from which on searches have half as many images. A ResNet-18
#: of width 16 takes 7e7 at 32x32 pixels, and one of width 64 1.1e9.
HEAVY = 2e8


@dataclass(frozen=True)
class OnPixels:
    """Pixels in [0, 1] -> float32 logits.

    A float32 network runs in bfloat16 where the hardware is faster at it (`precision`); gradients go through.

    Attributes:
        model: in eval mode, on any device and in any precision.
        spec: the images that it takes.
        exact: whether it runs in its own precision.
    """

    model: nn.Module
    spec: InputSpec
    exact: bool = False

    @property
    def _weight(self) -> Tensor:
        return next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))

    @property
    def device(self) -> torch.device:
        """Of the network."""
        return self._weight.device

    @cached_property
    def _fast(self) -> torch.dtype | None:
        """What it runs in, if not in its own precision."""
        own = self.exact or self._weight.dtype != torch.float32
        return None if own else training_dtype(self.device, self.model)

    @cached_property
    def _layout(self) -> torch.memory_format:
        return layout(self.model)

    def inputs(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> what the network takes, in its layout."""
        x = self.spec.normalise(pixels.to(self.device)).to(self._weight.dtype)
        return x.contiguous(memory_format=self._layout)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> (N, classes).

        Raises:
            MethodError: the network fails on such images, or does not answer one logit a class.
        """
        try:
            with torch.autocast(self.device.type, self._fast, enabled=self._fast is not None):
                logits = logits_of(self.model(self.inputs(pixels)))
        except ArchitectureError as error:
            raise MethodError(str(error)) from error
        except Exception as error:
            raise MethodError(f"the network fails on images of shape {self.spec.shape}: {first_line(error)}") from error
        if len(logits) != len(pixels):
            raise MethodError(f"expected (N, classes) logits, got {tuple(logits.shape)} for {len(pixels)} images")
        return logits.float()

    def logits(self, pixels: Tensor) -> Tensor:
        """(N, classes), in chunks, without gradients, on the CPU.

        Raises:
            MethodError: as a call, or some are not finite.
        """
        with torch.no_grad():
            logits = torch.cat([self(part).cpu() for part in torch.split(pixels, CHUNK)])
        if not bool(torch.isfinite(logits).all()):
            raise MethodError("expected finite logits, got NaN or infinity")
        return logits

    @cached_property
    def classes(self) -> int:
        """How many classes it has.

        Raises:
            MethodError: it does not answer finite logits of two classes or more.
        """
        count = self.logits(torch.full((2, *self.spec.shape), 0.5)).shape[1]
        if count < 2:
            raise MethodError(f"expected a network of 2 or more classes, got {count}")
        return count

    @cached_property
    def operations(self) -> int:
        """Floating-point operations that one image takes, forwards; 0 where they cannot be counted.

        Counted on two images, since some networks fail on one, and with gradients and attention in its plain form,
        since the counter does not know torch's shortcuts.

        Raises:
            MethodError: as a call.
        """
        pixels = torch.full((2, *self.spec.shape), 0.5, requires_grad=True)
        try:
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                self(pixels)
        except MethodError:
            self.logits(pixels.detach())
            return 0
        return int(counter.get_total_flops()) // 2

    def fewer(self, images: int) -> int:
        """Half of so many images where the network is heavy; else as many."""
        return images if self.operations < HEAVY else math.ceil(images / 2)


def needs_gradients(logits: Tensor) -> None:
    """Where a trigger is searched.

    Raises:
        MethodError: the logits have none.
    """
    if not logits.requires_grad:
        raise MethodError(
            "triggers are found by gradients, and the network's forward pass gives none: take torch.no_grad or "
            "torch.inference_mode out of it"
        )


def gradients(loss: Tensor, free: Sequence[Tensor], *, unused: bool = False) -> tuple[Tensor, ...]:
    """Of a loss on a network's logits; with `unused`, None where one does not depend on them.

    Raises:
        MethodError: the network's backward pass fails.
    """
    try:
        return torch.autograd.grad(loss, free, allow_unused=unused)
    except RuntimeError as error:
        raise MethodError(
            f"the network's backward pass fails: {first_line(error)}; networks that recompute parts of themselves "
            "(torch.utils.checkpoint) must be built without that"
        ) from error


def folded(shown: OnPixels, graph: LayerGraph) -> OnPixels:
    """A copy that answers the same in less time, for gradients of the pixels alone.

    Each BatchNorm is folded into the convolution or Linear before it, and an identity stands at its path. The network
    itself where there is nothing to fold, or where the copy fails or answers otherwise.

    Args:
        shown: the network.
        graph: its layers.
    """
    if not graph.pairs:
        return shown
    model = copy_model(shown.model)
    modules = dict(model.named_modules())
    count = 0
    for path, norm in graph.pairs.items():
        layer, after = modules.get(path), modules.get(norm)
        if not isinstance(after, nn.modules.batchnorm._BatchNorm) or graph[path].parametrization is not None:
            continue
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            _put(model, path, fuse_conv_bn_eval(layer, after))
        elif isinstance(layer, nn.Linear):
            _put(model, path, fuse_linear_bn_eval(layer, after))
        else:
            continue
        _put(model, norm, nn.Identity())
        count += 1
    copied = dataclasses.replace(shown, model=model)
    return copied if count and _alike(shown, copied) else shown


def going_on(
    shown: OnPixels, places: Collection[str], pixels: Tensor, *, asked: int
) -> contextlib.AbstractContextManager[Callable[[Tensor], Tensor]]:
    """Within, rows of some images are answered, and what lies before some places is computed once (`graph.resumed`)."""
    exact = dataclasses.replace(shown, exact=True)
    return resumed(shown.model, shown, places, pixels, exact=exact, chunk=CHUNK, asked=asked)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _alike(one: OnPixels, other: OnPixels) -> bool:
    """Whether two networks answer the same in their own precision, but for rounding."""
    pixels = torch.arange(8 * math.prod(one.spec.shape)).sin().abs().view(8, *one.spec.shape)
    try:
        given, found = (dataclasses.replace(each, exact=True).logits(pixels) for each in (one, other))
    except MethodError:
        return False
    return same(found, given)


def on_pixels(case: Case, model: nn.Module, *, exact: bool = False) -> tuple[OnPixels, str]:
    """A case's network as generated images see it, and a note on what images it takes.

    Args:
        case: what is known of the images.
        model: the network's working copy, whose weights take no gradients from now on.
        exact: whether it runs in its own precision.

    Raises:
        MethodError: the images' size is not known, or the network does not answer them with finite logits of two
            classes or more.
    """
    found = input_spec(case, model.requires_grad_(False))
    network = OnPixels(model, found.spec, exact=exact)
    _ = network.classes
    return network, found.note
