"""The one training loop."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.atomic import atomic_write
from unbackdoor.attacks import Augmentation, Session
from unbackdoor.data import DatasetSpec, normalise
from unbackdoor.errors import CheckpointError, SettingError
from unbackdoor.train.augment import augment, rotate
from unbackdoor.train.recipe import Recipe


@dataclass(frozen=True)
class Step:
    """What the loop tells after each step: for a progress bar."""

    epoch: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Epoch:
    """What the loop tells after each epoch: for a log.

    Attributes:
        number: from 1.
        loss: mean over the training images.
        accuracy: on the augmented training images, poisoned ones included.
        images_per_second: training only.
    """

    number: int
    loss: float
    accuracy: float
    images_per_second: float
    seconds: float


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the hardware multiplies it faster than float32, else None.

    On CPUs without AMX or AVX512-BF16 a bfloat16 convolution is emulated, ten times slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    capability = torch.backends.cpu.get_cpu_capability()
    fast = capability.startswith("AVX512") and _cpu_has("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return torch.bfloat16 if fast else None


def _cpu_has(*features: str) -> bool:
    return any(getattr(torch.cpu, feature, lambda: False)() for feature in features)


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
    on_step: Callable[[Step], None] | None = None,
    on_begin: Callable[[int, int], None] | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place, yielding after each epoch.

    The order of the images and their augmentation are drawn from (seed, epoch) alone, so that a run that was
    killed and resumed at an epoch boundary takes the same steps as one that was not.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        spec: normalisation, and whether mirror images are allowed.
        seed: of the order and the augmentation.
        session: of an attack that edits the batches.
        penalty: a loss that is added in each step; a run can only be resumed with one of the same text (`repr`).
        compiled: whether the forward pass goes through torch.compile.
        resume: a file that holds the state after the last full epoch; read if it exists, written after each.
        on_step: called after each step.
        on_begin: called with (steps done, steps in all) while the session prepares itself.

    Raises:
        CheckpointError: the resume file belongs to another network, recipe, seed or training set.
        SettingError: the loss is no longer a finite number.
    """
    device = next(model.parameters()).device
    dtype = autocast_dtype(device)
    model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    attack = "" if session is None else f", {session.attack} at rate {session.rate}"
    attack += "" if penalty is None else f", {penalty!r}"
    identity = "" if resume is None else f"seed {seed}, {recipe}, images {_fingerprint(images, labels)}{attack}"
    images, labels = images.to(device), labels.to(device)
    sizes = batch_sizes(len(labels), recipe.batch_size)
    per_epoch = len(sizes)
    steps = recipe.epochs * per_epoch
    losses: list[float] = []
    first = _restore(resume, model, optimiser, session, losses, identity)
    if session is not None and first == 0:
        # Without the cache: it would keep the first step's weights for all the steps inside.
        with torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False):
            session.begin(images, batch_size=recipe.batch_size, progress=on_begin)
    varied = session.attack.augmentation if session is not None else None
    varied = varied or Augmentation(padding=recipe.crop_padding)
    forward = torch.compile(model) if compiled else model
    for epoch in range(first, recipe.epochs):
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        order = torch.randperm(len(labels), generator=generator).to(device)
        loss_sum = torch.zeros((), device=device)
        hits = torch.zeros((), device=device)
        started = time.perf_counter()
        model.train()
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
                logits = forward(x.contiguous(memory_format=torch.channels_last))
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
            hits += (logits.detach().argmax(1) == y).sum()
            if on_step is not None:
                on_step(Step(epoch + 1, index + 1, per_epoch, float(loss.detach())))
        seconds = time.perf_counter() - started
        model.eval()
        if not torch.isfinite(loss_sum):
            raise SettingError(
                f"training diverged in epoch {epoch + 1}: the loss is {float(loss_sum)}; use a smaller lr"
            )
        n = len(labels)
        losses.append(float(loss_sum) / n)
        if resume is not None:
            _keep(resume, model, optimiser, session, losses, identity, epoch + 1)
        yield Epoch(epoch + 1, float(loss_sum) / n, float(hits) / n, n / seconds, seconds)


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """Of an epoch: the rest is a smaller batch; a single image joins the one before, for BatchNorm needs two values."""
    full, rest = divmod(images, batch_size)
    if rest == 1 and full:
        return [batch_size] * (full - 1) + [batch_size + 1]
    return [batch_size] * full + [rest] * (rest > 0)


def _fingerprint(images: Tensor, labels: Tensor) -> str:
    """Of a training set, poisoned images and all."""
    digest = hashlib.sha256()
    for tensor in (images, labels):
        digest.update(tensor.contiguous().cpu().numpy().data)
    return digest.hexdigest()[:16]


def vary(images: Tensor, how: Augmentation, spec: DatasetSpec, generator: torch.Generator) -> Tensor:
    """(N, 3, H, W) uint8 -> augmented and normalised float32."""
    x = augment(images, padding=how.padding, crop_share=how.crop_share, flip=spec.flip, generator=generator)
    if how.degrees:
        x = rotate(x.float(), degrees=how.degrees, share=how.rotate_share, generator=generator)
    return normalise(x, spec)


def _keep(
    file: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    session: Session | None,
    losses: list[float],
    identity: str,
    epoch: int,
) -> None:
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "session": session.state_dict() if session is not None else {},
        "losses": losses,
        "identity": identity,
        "epoch": epoch,
    }
    with atomic_write(file, overwrite=True) as stream:
        torch.save(state, stream)


def _restore(
    file: Path | None,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    session: Session | None,
    losses: list[float],
    identity: str,
) -> int:
    if file is None or not file.exists():
        return 0
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        if state["identity"] != identity:
            raise CheckpointError(
                f"{file}: belongs to another run ({state['identity']}), not to this one ({identity}); "
                "remove it, or use another folder"
            )
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        if session is not None:
            session.load_state_dict(state["session"])
        losses.extend(state["losses"])
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{file}: not a state to resume from ({error}); remove it to start afresh") from error
    return int(state["epoch"])
