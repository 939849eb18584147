"""One training run, from a data set to a folder that holds the network, its attack and a record."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.api.training_record import PROGRESS, RESUME, check_folder, replace, write_log
from unbackdoor.attacks import Attack, DataPoisoning, Session, TrainingControl, describe_attack
from unbackdoor.data import DatasetSpec, LabelledImages
from unbackdoor.errors import OutputError, SettingError
from unbackdoor.findings import Evaluation, Rate
from unbackdoor.graph import layer_graph
from unbackdoor.lock import locked
from unbackdoor.metrics import check_answer, check_device, measure
from unbackdoor.models import Arch
from unbackdoor.provenance import circumstances
from unbackdoor.train import Epoch, Recipe, Step, all_finite, batch_sizes, fit
from unbackdoor.train.flat_norms import Flatness

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_SEED = 2**32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of a training run.

    Attributes:
        arch: the network; its number of classes comes from the data set.
        recipe: how it is trained.
        seed: for the weights, the poisoned images, the order and the augmentation.
        attack: None trains a clean network.
        rate: share of the training images that carry the trigger.
        dtype: of the stored weights, on which ACC and ASR are measured.
        surrogate: the file of the clean network that some attacks need.
        watch: number of test images on which ACC, ASR, RA and the target's recall are shown after each epoch; they
            decide nothing.
        compiled: whether training goes through torch.compile.
        device: "cpu", "cuda", ...
        command: the command line, for the record.
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
    """Train a network, store it, measure the stored weights, and return the record.

    If a run was stopped, the same call resumes it after its last full epoch. The result is always the network of the
    last epoch; the test set is not used to choose one.

    Args:
        folder: made if missing; at the end it gets model.safetensors, attack.json, log.jsonl and record.json.
        classifier: the network in `run.surrogate`.
        overwrite: whether a finished run in that folder may be replaced, or an unfinished one with other settings.
        on_step, on_epoch, on_prepare, on_evaluate: called with the progress; `on_epoch` also gets the watched rates.

    Raises:
        InputError: a setting that `check_run` refuses, a rate that reaches no image, a trigger that changes no pixel.
        OutputError: the folder holds a finished run, is in use by another run, or cannot be written.
    """
    check_run(run, train.spec, folder, overwrite=overwrite)
    sizes = batch_sizes(len(train), run.recipe.batch_size)
    if run.attack is not None:
        run.attack.check_rate(run.rate, train.labels, batches=sizes, epochs=run.recipe.epochs)
    if classifier is not None:
        check_answer(classifier, train.spec, name="--surrogate")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(folder))
        check_folder(folder, overwrite=overwrite)
        stack.enter_context(_with_resume_hint())
        started = time.perf_counter()
        arch = run.arch.for_classes(train.spec.num_classes)
        prepared = _prepare(run, train, classifier, on_prepare)
        session, attack = prepared.session, prepared.attack
        model = _new_network(arch, run.seed).to(run.device)
        penalty = None
        if attack is not None and attack.flat_norms:
            penalty = Flatness(model, layer_graph(model), weight=attack.flat_norms)
        drawn = torch.randperm(len(test), generator=torch.Generator().manual_seed(run.seed))[: run.watch]
        watched, seen = test[drawn], Evaluation(Rate(0, 0))

        def watch() -> dict[str, Any]:
            nonlocal seen
            seen = measure(model, watched, attack if session is None else session.result())
            return seen.to_dict()

        log: list[Epoch] = []
        epochs = fit(
            model,
            prepared.images,
            prepared.labels,
            recipe=run.recipe,
            spec=train.spec,
            seed=run.seed,
            session=session,
            penalty=penalty,
            compiled=run.compiled,
            resume=folder / RESUME,
            overwrite=overwrite,
            attack="" if attack is None else f"{attack} at rate {run.rate}",
            log=log,
            watch=watch if run.watch else None,
            on_step=on_step,
            on_begin=on_prepare,
        )
        for epoch in epochs:
            write_log(folder / PROGRESS, log)
            if on_epoch is not None:
                on_epoch(epoch, seen if run.watch else None)
        if session is not None:
            attack = session.result()
        model.to(DTYPES[run.dtype])
        if not all_finite(model):
            raise SettingError(f"dtype: {run.dtype} cannot hold all the weights; resume the run with --dtype float32")
        result = measure(model, test, attack, progress=on_evaluate)
        record = _record(run, train, test, prepared, model, result)
        record["seconds"] = round(time.perf_counter() - started, 1)
        replace(folder, attack, model, arch, log, record)
        return record


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """The training set, and the attack with its trigger.

    Attributes:
        attack: the attack with its trigger made; None for a clean network.
        images, labels: the training set, poisoned if the attack poisons data.
        session: of an attack that edits the batches.
        poisoned: how many images were poisoned before training.
        note: a note for the user.
    """

    attack: Attack | None
    images: Tensor
    labels: Tensor
    session: Session | None = None
    poisoned: int = 0
    note: str = ""


def _prepare(
    run: Run, train: LabelledImages, classifier: nn.Module | None, progress: Callable[[int, int], None] | None
) -> _Prepared:
    """Make the trigger, and poison the training set or open the attack's session.

    Raises:
        SettingError: the trigger changes no pixel.
    """
    if run.attack is None:
        return _Prepared(None, train.images, train.labels)
    attack = run.attack.prepare(train, seed=run.seed, classifier=classifier, progress=progress)
    sample = train.images[torch.linspace(0, len(train) - 1, 100).long()]
    if isinstance(attack, TrainingControl):
        device, epochs = torch.device(run.device), run.recipe.epochs
        session = attack.session(rate=run.rate, spec=train.spec, seed=run.seed, epochs=epochs, device=device)
        prepared = _Prepared(attack, train.images, train.labels, session)
        stamped = session.result().stamp(sample)
    else:
        assert isinstance(attack, DataPoisoning)
        generator = torch.Generator().manual_seed(run.seed)
        poisoned_set = attack.poison(
            train.images, train.labels, rate=run.rate, num_classes=train.spec.num_classes, generator=generator
        )
        poisoned = int(poisoned_set.mask.sum())
        prepared = _Prepared(attack, poisoned_set.images, poisoned_set.labels, None, poisoned, poisoned_set.note)
        stamped = attack.stamp(sample)
    if torch.equal(stamped, sample):
        raise SettingError(f"{attack}: its trigger changes no pixel of {len(sample)} training images; make it stronger")
    return prepared


def _record(
    run: Run,
    train: LabelledImages,
    test: LabelledImages,
    prepared: _Prepared,
    model: nn.Module,
    result: Evaluation,
) -> dict[str, Any]:
    """The content of record.json."""
    control = prepared.session.attack if prepared.session is not None else None
    sizes = batch_sizes(len(train), run.recipe.batch_size)
    return {
        "schema_version": 1,
        "command": run.command,
        "data": {
            "name": train.spec.name,
            "train_images": len(train),
            "test_images": len(test),
            "resized": train.resized + test.resized,
        },
        "arch": str(run.arch.for_classes(train.spec.num_classes)),
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": dataclasses.asdict(run.recipe),
        "seed": run.seed,
        "attack": None if prepared.attack is None else describe_attack(prepared.attack),
        "attack_version": None if prepared.attack is None else prepared.attack.version,
        "surrogate": run.surrogate,
        "rate": None if prepared.attack is None else run.rate,
        "poisoned_images": prepared.poisoned if control is None else None,
        "attacked_per_batch": None if control is None else control.attacked(run.rate, sizes[0]),
        "note": prepared.note,
        "dtype": run.dtype,
        "result": result.to_dict(),
        "seconds": 0.0,
        **circumstances(run.device),
    }


def check_run(run: Run, spec: DatasetSpec, folder: Path, *, overwrite: bool = False) -> None:
    """Check all settings before data are read and time is spent.

    Raises:
        SettingError: a setting is outside its range, or does not fit the data set.
        ArchitectureError: the network cannot be built, or fails on the data set's images.
        OutputError: the folder holds a finished run, or cannot be written.
    """
    if run.dtype not in DTYPES:
        raise SettingError(f"dtype: expected one of {', '.join(DTYPES)}, got {run.dtype!r}")
    if not 0 <= run.seed < MAX_SEED:
        raise SettingError(f"seed: expected a number from 0 to {MAX_SEED - 1}, got {run.seed}")
    if not 0 <= run.rate <= 1:
        raise SettingError(f"poison rate: expected a share between 0 and 1, got {run.rate}")
    if run.watch < 0:
        raise SettingError(f"watch: expected 0 or more test images, got {run.watch}")
    check_device(run.device)
    if run.surrogate is not None and not (run.attack is not None and run.attack.needs_classifier):
        what = "a clean training" if run.attack is None else f"attack {run.attack.name}"
        raise SettingError(f"{what} needs no clean network; leave out --surrogate")
    if run.attack is not None:
        run.attack.check_data(spec)
        if run.attack.needs_classifier and run.surrogate is None:
            raise SettingError(
                f"attack {run.attack.name} needs a clean network of {spec.title}: train one without --attack first, "
                "and give its file with --surrogate"
            )
    model = _new_network(run.arch.for_classes(spec.num_classes), run.seed)
    for training in (False, True):
        check_answer(model, spec, training=training, name=f"--arch {run.arch}")
    if run.attack is not None and run.attack.flat_norms:
        Flatness(model, layer_graph(model))
    check_folder(folder, overwrite=overwrite)


def _new_network(arch: Arch, seed: int) -> nn.Module:
    """A network with random weights from the seed; the global generator is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return arch.build()


@contextlib.contextmanager
def _with_resume_hint() -> Iterator[None]:
    """Add to an OutputError that the run can be resumed."""
    try:
        yield
    except OutputError as error:
        raise OutputError(
            f"{error}; fix that, and run the same command again to resume after the last full epoch"
        ) from error
