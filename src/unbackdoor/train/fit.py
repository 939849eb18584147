"""The one training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.data import DatasetSpec, normalise
from unbackdoor.data.augment import Augmentation, augment, rotate
from unbackdoor.errors import SettingError
from unbackdoor.precision import layout, training_dtype
from unbackdoor.train.control import Session
from unbackdoor.train.recipe import Recipe
from unbackdoor.train.resume import keep, restore


@dataclass(frozen=True)
class Step:
    """The state of the training loop after a step, for a progress bar."""

    epoch: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Epoch:
    """The state of the training loop after an epoch, for a log.

    Attributes:
        number: from 1.
        loss: mean over the training images.
        accuracy: on the augmented training images, poisoned ones included.
        images_per_second: training only.
        watched: what `fit`'s `watch` returned after it.
    """

    number: int
    loss: float
    accuracy: float
    images_per_second: float
    seconds: float
    watched: dict[str, Any] | None = None


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    recipe: Recipe,
    spec: DatasetSpec,
    seed: int,
    session: Session | None = None,
    penalty: Callable[[], Tensor] | None = None,
    compiled: bool = False,
    resume: Path | None = None,
    overwrite: bool = False,
    attack: str = "",
    log: list[Epoch] | None = None,
    watch: Callable[[], dict[str, Any]] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_begin: Callable[[int, int], None] | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place, yielding after each epoch.

    The order of the images, their augmentation and the network's own dropout are drawn from (seed, epoch) alone, so
    that a run that was killed and resumed at an epoch boundary takes the same steps as one that was not.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        spec: the data set, for normalisation and for whether images may be mirrored.
        seed: for the order, the augmentation and the dropout.
        session: of an attack that edits the batches.
        penalty: a loss that is added in each step; a run can only be resumed with one of the same text (`repr`).
        compiled: whether the forward pass goes through torch.compile.
        resume: a file that holds the state after the last full epoch; read if it exists, written after each.
        overwrite: whether a resume file that is damaged or from another run is replaced.
        attack: the attack as text, which identifies the run in the resume file.
        log: gets every epoch, those of the resumed run first.
        watch: called after each epoch, with the network in eval mode; what it returns goes into the log.
        on_step: called after each step.
        on_begin: called with (steps done, total steps) while the session is prepared.

    Raises:
        CheckpointError: the resume file is damaged, or belongs to another network, recipe, seed or training set.
        SettingError: the loss or a weight is no longer a finite number.
    """
    device = next(model.parameters()).device
    dtype = training_dtype(device, model)
    shape = layout(model)
    model.to(memory_format=shape)
    optimiser = optimiser_of(recipe, model)
    parts = {"model": model, "optimiser": optimiser, **({} if session is None else {"session": session})}
    log = [] if log is None else log
    identity: dict[str, str] = {}
    if resume is not None:
        control = "" if session is None else f", {session.attack} at rate {session.rate}"
        identity = {
            "seed": str(seed),
            "recipe": str(recipe),
            "attack": f"{attack}{control}, {penalty!r}",
            "network": str([(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]),
            "training images": _fingerprint(images, labels),
        }
        log.extend(Epoch(**entry) for entry in restore(resume, parts, identity, overwrite=overwrite))
    first = len(log)
    images, labels = images.to(device), labels.to(device)
    sizes = batch_sizes(len(labels), recipe.batch_size)
    per_epoch = len(sizes)
    steps = recipe.epochs * per_epoch
    varied = session.attack.augmentation if session is not None else None
    varied = dataclasses.replace(varied or Augmentation(padding=recipe.crop_padding), flip=recipe.flip)
    if session is not None and first == 0:
        # Without the cache: it would keep the first step's weights for all the steps inside.
        with torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False):
            session.begin(
                images,
                batch_size=recipe.batch_size,
                vary=lambda batch, generator: vary(batch, varied, spec, generator),
                progress=on_begin,
            )
    forward = torch.compile(model) if compiled else model
    for epoch in range(first, recipe.epochs):
        generator = torch.Generator().manual_seed(_draw_of(seed, epoch))
        losses = [past.loss for past in log]
        order = torch.randperm(len(labels), generator=generator).to(device)
        loss_sum, penalty_sum = torch.zeros((), device=device), torch.zeros((), device=device)
        hits = torch.zeros((), device=device)
        started = time.perf_counter()
        model.train()
        with _seeded(seed, epoch, device):
            for index, batch in enumerate(torch.split(order, sizes)):
                step = epoch * per_epoch + index
                for group in optimiser.param_groups:
                    group["lr"] = recipe.lr_at(step, steps, losses)
                x, y = images[batch], labels[batch]
                if session is not None:
                    x, y = session.before(x, y, generator)
                x = vary(x, varied, spec, generator)
                extra: Tensor | None = None
                with torch.autocast(device.type, dtype, enabled=dtype is not None):
                    if session is not None:
                        x, y, extra = session.after(x, y, generator)
                    logits = forward(x.contiguous(memory_format=shape))
                    loss = F.cross_entropy(logits, y)
                whole = loss if extra is None else loss + extra
                if penalty is not None:
                    whole = whole + penalty()
                optimiser.zero_grad(set_to_none=True)
                whole.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                if session is not None:
                    session.step((step + 1) / steps)
                loss_sum += loss.detach() * len(y)
                penalty_sum += (whole - loss).detach()
                hits += (logits.detach().argmax(1) == y).sum()
                if on_step is not None:
                    on_step(Step(epoch + 1, index + 1, per_epoch, float(loss.detach())))
        seconds = time.perf_counter() - started
        model.eval()
        n = len(labels)
        if not (torch.isfinite(loss_sum + penalty_sum) and all_finite(model)):
            less = "" if penalty is None else ", or a smaller flat_norms"
            raise SettingError(
                f"training diverged in epoch {epoch + 1}: the loss is {float(loss_sum + penalty_sum) / n:.3g}, or a "
                f"weight is infinite; use another --recipe (paper has the smallest learning rate){less}"
            )
        entry = Epoch(epoch + 1, float(loss_sum) / n, float(hits) / n, n / seconds, seconds)
        if watch is not None:
            entry = dataclasses.replace(entry, watched=watch())
        log.append(entry)
        if resume is not None:
            keep(resume, parts, [dataclasses.asdict(past) for past in log], identity)
        yield entry


def optimiser_of(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimiser over all parameters."""
    if recipe.optimiser == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def all_finite(model: nn.Module) -> bool:
    """Whether no parameter and no buffer holds an infinity or a NaN."""
    return all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def _draw_of(seed: int, epoch: int) -> int:
    return seed * 100_003 + epoch


@contextlib.contextmanager
def _seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Seed the network's own random numbers (dropout) from (seed, epoch); the global generators are restored."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(~_draw_of(seed, epoch))  # not the same numbers as for the order
        yield


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """The batch sizes of an epoch: the last may be smaller, but not 1, because BatchNorm needs two values."""
    full, rest = divmod(images, batch_size)
    if rest == 1 and full:
        return [batch_size] * (full - 1) + [batch_size + 1]
    return [batch_size] * full + [rest] * (rest > 0)


def _fingerprint(images: Tensor, labels: Tensor) -> str:
    """A digest of a training set, including poisoned images."""
    digest = hashlib.sha256()
    for tensor in (images, labels):
        digest.update(tensor.contiguous().cpu().numpy().data)
    return digest.hexdigest()[:16]


def vary(images: Tensor, how: Augmentation, spec: DatasetSpec, generator: torch.Generator) -> Tensor:
    """(N, 3, H, W) in 0..255 -> augmented and normalised float32."""
    first = how.fill == "mean"  # zero fill after normalisation is the mean colour
    x = normalise(images, spec) if first else images
    x = augment(
        x,
        padding=how.padding,
        crop_share=how.crop_share,
        flip=spec.flip and how.flip,
        generator=generator,
        shared=how.shared,
    )
    if how.degrees:
        x = rotate(x.float(), degrees=how.degrees, share=how.rotate_share, generator=generator, shared=how.shared)
    return x if first else normalise(x, spec)
