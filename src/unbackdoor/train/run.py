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
from unbackdoor.atomic import atomic_write
from unbackdoor.attacks import Attack, DataPoisoning, TrainingControl, describe_attack, save_attack
from unbackdoor.attacks.flatness import Flatness
from unbackdoor.attacks.store import SETTINGS, TRIGGER
from unbackdoor.data import DatasetSpec, LabelledImages, normalise
from unbackdoor.errors import OutputError, SettingError
from unbackdoor.graph import layer_graph
from unbackdoor.metrics import Evaluation, evaluate_model
from unbackdoor.models import Arch
from unbackdoor.train.fit import Epoch, Step, fit
from unbackdoor.train.recipe import Recipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_SEED = 2**32
MODEL, RECORD, LOG, RESUME = "model.safetensors", "record.json", "log.jsonl", "resume.pt"


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
        surrogate: where the clean network comes from that some attacks need.
        watch: test images (the first ones) on which ACC, ASR and RA are shown after each epoch; they decide nothing.
        compiled: whether training goes through torch.compile.
        device: "cpu", "cuda", ...
        command: recorded beside the result.
    """

    arch: Arch
    recipe: Recipe
    seed: int = 0
    attack: Attack | None = None
    rate: float = 0.1
    dtype: str = "float32"
    surrogate: str | None = None
    watch: int = 0
    compiled: bool = False
    device: str = "cpu"
    command: str = ""


def train_run(
    run: Run,
    train: LabelledImages,
    test: LabelledImages,
    folder: Path,
    *,
    classifier: nn.Module | None = None,
    overwrite: bool = False,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch, Evaluation | None], None] | None = None,
    on_prepare: Callable[[int, int], None] | None = None,
    on_evaluate: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train, store, measure what was stored, and record it; returns the record.

    A run that was stopped goes on after its last full epoch when it is called again with the same settings. The result
    is the last epoch's network, whatever the test set says of earlier ones.

    Args:
        folder: made if missing; gets model.safetensors, attack.json, log.jsonl and record.json.
        classifier: the network in `run.surrogate`.
        overwrite: whether a finished run in that folder may be replaced.
        on_step, on_epoch, on_prepare, on_evaluate: are told how far it is; `on_epoch` gets the watched rates too.

    Raises:
        InputError: a setting that `check_run` refuses.
        OutputError: the folder holds a finished run, or cannot be written.
    """
    check_run(run, train.spec, folder, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    arch = run.arch.with_options(num_classes=train.spec.num_classes)
    started = time.perf_counter()
    attack, note = run.attack, ""
    if attack is not None:
        attack = attack.armed(train, seed=run.seed, classifier=classifier, progress=on_prepare)
    images, labels, session, poisoned = train.images, train.labels, None, 0
    if isinstance(attack, DataPoisoning):
        generator = torch.Generator().manual_seed(run.seed)
        spoilt = attack.poison(images, labels, rate=run.rate, num_classes=train.spec.num_classes, generator=generator)
        images, labels, note, poisoned = spoilt.images, spoilt.labels, spoilt.note, int(spoilt.mask.sum())
    elif isinstance(attack, TrainingControl):
        session = attack.session(
            rate=run.rate,
            spec=train.spec,
            seed=run.seed,
            epochs=run.recipe.epochs,
            device=torch.device(run.device),
        )
    model = _fresh(arch, run.seed).to(run.device)
    penalty = None
    if attack is not None and attack.flat_norms:
        penalty = Flatness(model, layer_graph(model), weight=attack.flat_norms)
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
        session=session,
        penalty=penalty,
        compiled=run.compiled,
        resume=resume,
        on_step=on_step,
        on_begin=on_prepare,
    )
    for epoch in epochs:
        seen = None
        if run.watch:
            seen = measure(model, test[: run.watch], session.result() if session is not None else attack)
        with log.open("a") as stream:
            line = dataclasses.asdict(epoch) | ({} if seen is None else {"watched": seen.to_dict()})
            stream.write(json.dumps(line) + "\n")
        if on_epoch is not None:
            on_epoch(epoch, seen)
    if session is not None:
        attack = session.result()
    model.to(DTYPES[run.dtype])
    result = measure(model, test, attack, progress=on_evaluate)
    record = {
        "schema_version": 1,
        "command": run.command,
        "data": {"name": train.spec.name, "train_images": len(train), "test_images": len(test)},
        "arch": str(arch),
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": dataclasses.asdict(run.recipe),
        "seed": run.seed,
        "attack": None if attack is None else describe_attack(attack),
        "surrogate": run.surrogate,
        "rate": None if attack is None else run.rate,
        "poisoned_images": None if session is not None else poisoned,
        "note": note,
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
    for file in (SETTINGS, TRIGGER):
        (folder / file).unlink(missing_ok=True)
    if attack is not None:
        save_attack(attack, folder)
    checkpoint.save(folder / MODEL, model.state_dict(), metadata={checkpoint.ARCH_KEY: str(arch)}, overwrite=True)
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
        run.attack.check(num_classes=spec.num_classes, size=spec.size)
        if run.attack.needs_classifier and run.surrogate is None:
            raise SettingError(
                f"attack {run.attack.name} needs a clean network of {spec.title} first: train one without --attack, "
                "and give it with --surrogate"
            )
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
            num_classes=test.spec.num_classes,
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
    with atomic_write(path, overwrite=True) as stream:
        stream.write((json.dumps(value, indent=2) + "\n").encode())
