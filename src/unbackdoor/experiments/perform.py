"""Run one cell and make its record; engines call this on their workers."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unbackdoor.api import load_model
from unbackdoor.api.defending import timed
from unbackdoor.api.images import mixture
from unbackdoor.api.training import Run, train_run
from unbackdoor.attacks import load_attack
from unbackdoor.data import LabelledImages, clean_subset, normalise
from unbackdoor.defences.table import parse_method
from unbackdoor.defender.case import Case
from unbackdoor.experiments.cell import (
    VERSIONS,
    Cell,
    Correlation,
    Probe,
    Repair,
    Training,
    method_origins,
)
from unbackdoor.experiments.data_sets import load
from unbackdoor.findings import effectiveness, read_evaluation
from unbackdoor.metrics import measure, target_of
from unbackdoor.metrics.activation_change import correlations
from unbackdoor.models import parse_arch
from unbackdoor.provenance import circumstances, commit, device_name, version
from unbackdoor.prune import differ

SCHEMA_VERSION = 1
MODEL, ATTACK, TRIGGER, LOG, RUN = "model.safetensors", "attack.json", "attack.safetensors", "log.jsonl", "run.json"

#: Called with (done, total, a note).
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Work:
    """A piece of work for a worker.

    Attributes:
        cell: the cell.
        files: name -> content, of the training that it needs.
        before: the rates of that training.
        digests: name of a data set -> digest of its content.
        folder: folder for unfinished work.
        data_dir: folder of the data sets; None takes $UNBACKDOOR_DATA.
        device: where to run.
        threads: torch threads; 0 keeps torch's default.
    """

    cell: Cell
    files: Mapping[str, bytes]
    before: Mapping[str, Any] | None
    digests: Mapping[str, str]
    folder: str
    data_dir: str | None = None
    device: str = "cpu"
    threads: int = 0


@dataclass(frozen=True)
class Produced:
    """The result of a worker: a record, and its files by name."""

    record: dict[str, Any]
    files: dict[str, bytes]


@dataclass(frozen=True)
class Failed:
    """Why a cell could not be run.

    Attributes:
        reason: one line.
        cause: "cell" if it would probably fail again, "engine" if the machine was at fault.
    """

    reason: str
    cause: str = "cell"


def perform(work: Work, progress: Progress = lambda _done, _total, _note: None) -> Produced:
    """Run one cell.

    Raises:
        UnbackdoorError: the cell cannot be run; the message is one line.
    """
    if work.threads:
        torch.set_num_threads(work.threads)
    started = time.perf_counter()
    cell = work.cell
    if isinstance(cell, Training):
        result, files = _train(cell, work, progress)
    elif isinstance(cell, Repair):
        result, files = _repair(cell, work, progress), {}
    elif isinstance(cell, Correlation):
        result, files = _correlate(cell, work), {}
    else:
        assert isinstance(cell, Probe)
        if cell.seconds:
            time.sleep(cell.seconds)
        result, files = {"value": hashlib.sha256(str(cell.number).encode()).hexdigest()}, {}
    about = circumstances(device_name(work.device))
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": cell.kind,
        "config": cell.config,
        "epoch": VERSIONS[cell.kind],
        "data_digest": None if cell.data_name is None else work.digests[cell.data_name],
        "result": result,
        "seconds": round(time.perf_counter() - started, 3),
        "commit": commit(),
        **about,
        "versions": {"unbackdoor": version(), **about["versions"]},
    }
    return Produced(record, files)


def _train(cell: Training, work: Work, progress: Progress) -> tuple[dict[str, Any], dict[str, bytes]]:
    from unbackdoor.attacks import read_attack

    train, test = (load(cell.data, split, work.data_dir) for split in ("train", "test"))
    attack = None if cell.attack is None else read_attack(cell.config["attack"])
    run = Run(
        arch=parse_arch(cell.arch),
        recipe=cell.build_recipe(),
        seed=cell.seed,
        attack=attack,
        rate=cell.rate,
        dtype=cell.dtype,
        device=work.device,
    )
    folder = Path(work.folder)
    (folder / "record.json").unlink(missing_ok=True)  # of a run that was killed between its end and the store

    def on_step(step: Any) -> None:
        total = run.recipe.epochs * step.steps
        progress((step.epoch - 1) * step.steps + step.step, total, f"epoch {step.epoch}, loss {step.loss:.3f}")

    record = train_run(run, train, test, folder, overwrite=True, on_step=on_step)
    names = [name for name in (MODEL, ATTACK, TRIGGER, LOG) if (folder / name).exists()]
    files = {name: (folder / name).read_bytes() for name in names}
    kept = ("result", "note", "poisoned_images", "attacked_per_batch", "parameters")
    return {"rates": record["result"], **{name: record.get(name) for name in kept if name != "result"}}, files


def _repair(cell: Repair, work: Work, progress: Progress) -> dict[str, Any]:
    model, attack, test = _trained(cell.training, work)
    method = parse_method(cell.method)
    poisoned, seed = 0, cell.clean_seed or 0
    case = Case(network=model, generator=torch.Generator().manual_seed(seed), progress=progress)
    if method.needs != "nothing":
        assert cell.clean is not None
        train = load(cell.data_name, "train", work.data_dir)
        images = clean_subset(train, share=cell.clean, seed=seed).data
        if cell.poisoned is not None and attack is not None:
            images, poisoned = mixture(images, attack, cell.poisoned, seed)
        case = dataclasses.replace(case, images=images.images, labels=images.labels, spec=images.spec)
    elif method.runs:  # it makes images of its own, of the size and normalisation here
        example = torch.zeros(2, test.spec.channels, test.spec.size, test.spec.size, device=work.device)
        case = dataclasses.replace(case, example=example, spec=test.spec)
    outcome, seconds = timed(lambda: method.run(case))
    after = measure(outcome.model, test, attack)
    before = _before(work, model, test, attack)
    report = outcome.report.to_dict()
    return {
        "rates": after.to_dict(),
        "before": before,
        "der": effectiveness(read_evaluation(before), after),
        "changed": differ(model, outcome.model),
        "pruned": outcome.report.pruned,
        "scaled": outcome.report.scaled,
        "suspects": None if outcome.report.witness is None else list(outcome.report.suspects),
        "doubtful": outcome.report.doubtful,
        "story": list(outcome.report.story),
        "guessed_class": None if outcome.report.classifier is None else outcome.report.classifier.guessed_class,
        "images": None if report["data"] is None else report["data"]["images"],
        "images_digest": None if report["data"] is None else report["data"]["digest"],
        "poisoned_images": poisoned,
        "stages": report["stages"],
        "origins": method_origins(cell.method),
        "method_seconds": round(seconds, 4),
        "layers": report["layers"] if cell.scores else None,
    }


def _before(work: Work, model: torch.nn.Module, test: LabelledImages, attack: Any) -> dict[str, Any]:
    """The rates of the network that was repaired, as its training recorded them; older records lack the recall."""
    assert work.before is not None
    found = read_evaluation(work.before)
    target = None if attack is None else target_of(attack, test.spec.num_classes)
    if found.recall is None and target is not None:
        own = measure(model, test[test.labels == target], None)
        found = dataclasses.replace(found, recall=own.acc)
    return {**work.before, **found.to_dict()}


def _correlate(cell: Correlation, work: Work) -> dict[str, Any]:
    model, attack, test = _trained(cell.training, work)
    assert attack is not None
    others = (test.labels != attack.target_labels(test.labels, test.spec.num_classes)).nonzero().flatten()
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(cell.seed))
    images = test[others[order[: cell.images]]]
    clean, triggered = (normalise(x.to(work.device), test.spec) for x in (images.images, attack.stamp(images.images)))
    return correlations(model, clean, triggered)


def _trained(training: Training, work: Work) -> tuple[torch.nn.Module, Any, LabelledImages]:
    """A network from the store's files, its attack, and the test images."""
    folder = Path(work.folder)
    folder.mkdir(exist_ok=True)
    for name, content in work.files.items():
        (folder / name).write_bytes(content)
    model = load_model(folder / MODEL, arch=training.config["arch"]).to(work.device)
    attack = load_attack(folder / ATTACK) if ATTACK in work.files else None
    return model, attack, load(training.data, "test", work.data_dir)
