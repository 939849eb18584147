"""One training run, from a data set to a folder that holds the network, its attack and a record."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbackdoor import checkpoint
from unbackdoor.attacks import Attack, describe_attack
from unbackdoor.data import DatasetSpec, LabelledImages, normalise
from unbackdoor.errors import OutputError, SettingError
from unbackdoor.metrics import Evaluation, evaluate_model
from unbackdoor.models import Arch
from unbackdoor.train.fit import Epoch, Step, fit
from unbackdoor.train.recipe import Recipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_SEED = 2**32
MODEL, ATTACK, RECORD, LOG, RESUME = (
    "model.safetensors",
    "attack.json",
    "record.json",
    "log.jsonl",
    "resume.pt",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is to be trained.

    Attributes:
        arch: the network; its classes come from the data set.
        recipe: how.
        seed: of the weights, of the poisoned images, of the order and the augmentation.
        attack: None trains a clean network.
        rate: share of the training images that carry the trigger.
        dtype: of the stored weights; ACC and ASR are measured on what was stored.
        device: "cpu", "cuda", ...
        command: recorded beside the result.
    """

    arch: Arch
    recipe: Recipe
    seed: int = 0
    attack: Attack | None = None
    rate: float = 0.1
    dtype: str = "float32"
    device: str = "cpu"
    command: str = ""


def train_run(
    run: Run,
    train: LabelledImages,
    test: LabelledImages,
    folder: Path,
    *,
    overwrite: bool = False,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_evaluate: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train, store, measure what was stored, and record it; returns the record.

    A run that was stopped goes on after its last full epoch when it is called again with the same settings. The result
    is the last epoch's network, whatever the test set says of earlier ones.

    Args:
        folder: made if missing; gets model.safetensors, attack.json, log.jsonl and record.json.
        overwrite: whether a finished run in that folder may be replaced.

    Raises:
        InputError: a setting that `check_run` refuses.
        OutputError: the folder holds a finished run, or cannot be written.
    """
    check_run(run, train.spec, folder, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    arch = run.arch.with_options(num_classes=train.spec.num_classes)
    started = time.perf_counter()
    images, labels, poisoned = train.images, train.labels, None
    if run.attack is not None:
        generator = torch.Generator().manual_seed(run.seed)
        poisoned = run.attack.poison(images, labels, rate=run.rate, generator=generator)
        images, labels = poisoned.images, poisoned.labels
    model = _fresh(arch, run.seed).to(run.device)
    log = folder / LOG
    resume = folder / RESUME
    if not resume.exists():
        log.unlink(missing_ok=True)
    epochs = fit(
        model,
        images,
        labels,
        recipe=run.recipe,
        spec=train.spec,
        seed=run.seed,
        resume=resume,
        on_step=on_step,
    )
    for epoch in epochs:
        with log.open("a") as stream:
            stream.write(json.dumps(dataclasses.asdict(epoch)) + "\n")
        if on_epoch is not None:
            on_epoch(epoch)
    model.to(DTYPES[run.dtype])
    result = measure(model, test, run.attack, progress=on_evaluate)
    record = {
        "schema_version": 1,
        "command": run.command,
        "data": {"name": train.spec.name, "train_images": len(train), "test_images": len(test)},
        "arch": str(arch),
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": dataclasses.asdict(run.recipe),
        "seed": run.seed,
        "attack": None if run.attack is None else describe_attack(run.attack),
        "poisoned_images": 0 if poisoned is None else int(poisoned.mask.sum()),
        "dtype": run.dtype,
        "result": result.to_dict(),
        "seconds": round(time.perf_counter() - started, 1),
        "hardware": {
            "device": run.device,
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    (folder / RECORD).unlink(missing_ok=True)  # never an old record beside a new network
    (folder / ATTACK).unlink(missing_ok=True)
    if run.attack is not None:
        _write_json(folder / ATTACK, describe_attack(run.attack))
    checkpoint.save(folder / MODEL, model.state_dict(), metadata={"unbackdoor.arch": str(arch)}, overwrite=True)
    _write_json(folder / RECORD, record)
    resume.unlink(missing_ok=True)
    return record


def check_run(run: Run, spec: DatasetSpec, folder: Path, *, overwrite: bool = False) -> None:
    """Refuse what would fail later, before data are read and hours are spent.

    Raises:
        SettingError: a setting is outside its range, or does not fit the data set.
        ArchitectureError: the network cannot be built.
        OutputError: the folder holds a finished run, or cannot be written.
    """
    if run.dtype not in DTYPES:
        raise SettingError(f"dtype: expected one of {', '.join(DTYPES)}, got {run.dtype!r}")
    if not 0 <= run.seed < MAX_SEED:
        raise SettingError(f"seed: expected 0 to {MAX_SEED - 1}, got {run.seed}")
    if not 0 <= run.rate <= 1:
        raise SettingError(f"poison rate: expected a share between 0 and 1, got {run.rate}")
    check_device(run.device)
    if run.attack is not None:
        run.attack.check_target(spec.num_classes)
        run.attack.stamp(torch.zeros(1, 3, spec.size, spec.size, dtype=torch.uint8))
    classes = run.arch.options.get("num_classes", spec.num_classes)
    if classes != spec.num_classes:
        raise SettingError(f"--arch {run.arch}: {spec.title} has {spec.num_classes} classes, not {classes}")
    _fresh(run.arch.with_options(num_classes=spec.num_classes), run.seed)
    finished = (folder / RECORD).exists() or ((folder / MODEL).exists() and not (folder / RESUME).exists())
    if finished and not overwrite:
        raise OutputError(f"{folder}: holds a finished run and is left as it is; use --force to train anew")
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise OutputError(f"{folder}: cannot be made or written: {nearest} is no folder that may be written to")


def check_device(device: str) -> None:
    """SettingError unless tensors can be put on `device`."""
    try:
        torch.empty(1, device=device).item()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingError(f"device {device!r} cannot be used here: {reason}") from error


def measure(
    model: nn.Module,
    test: LabelledImages,
    attack: Attack | None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """ACC, ASR and RA of a network on a data set; half-precision weights are used in float32."""
    dtype = next(model.parameters()).dtype
    try:
        return evaluate_model(
            model.float(),
            test.images,
            test.labels,
            prepare=lambda batch: normalise(batch, test.spec),
            attack=attack,
            progress=progress,
        )
    finally:
        model.to(dtype)


def _fresh(arch: Arch, seed: int) -> nn.Module:
    """New weights from the seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return arch.build()


def _write_json(path: Path, value: Any) -> None:
    with checkpoint.atomic_write(path, overwrite=True) as stream:
        stream.write((json.dumps(value, indent=2) + "\n").encode())
