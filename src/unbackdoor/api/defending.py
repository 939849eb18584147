"""`defend`: repair a model file by any method, with the images that it needs, and measure it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unbackdoor import checkpoint
from unbackdoor.api.arguments import as_attack, as_method
from unbackdoor.api.reading import network_of, open_model, with_source
from unbackdoor.api.repairing import write_repaired
from unbackdoor.defences.base import Defence, Outcome
from unbackdoor.defender.case import Case
from unbackdoor.errors import IncompleteError, SettingError
from unbackdoor.findings import DataReport, Defended
from unbackdoor.models import Arch

if TYPE_CHECKING:
    from unbackdoor.attacks import Attack
    from unbackdoor.data import LabelledImages


def defend(
    source: str | Path,
    output: str | Path | None = None,
    *,
    method: Defence | str,
    data: str | None = None,
    clean: float = 0.05,
    seed: int = 0,
    attack: Attack | str | None = None,
    poisoned: float = 0.0,
    measured: bool = False,
    arch: str | Arch | None = None,
    key: str | None = None,
    example: Any = None,
    answer: str | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str = "cpu",
    overwrite: bool = False,
    partial: bool = False,
    progress: Callable[[int, int, str], None] = lambda _done, _total, _note: None,
) -> Defended:
    """Repair a model file by any method, and measure it before and after if asked to.

    Args:
        source: a model file; it is never modified.
        output: the repaired file; None writes none.
        method: any defence, or its name.
        data: name of the data set, a data.toml, or a folder of images; its training part gives the method's images,
            its test part is what is measured on.
        clean: training images for the method: a fraction up to 1, or a count.
        seed: for the choice of these images, and for the method's random numbers.
        attack: the attack whose success rate is measured.
        poisoned: share of the method's images that carry `attack`'s trigger, for methods that use training images.
        measured: whether ACC (and with an attack ASR and RA) are measured on the test set, before and after.
        arch: the network, as in `--arch`, if the file does not name it.
        key: which entry of a torch file to read, if there are several.
        example: an input for the network, if its layers cannot be read without one (see `layer_graph`).
        answer: which part of the network's output is the logits: a key, a number or a field's name. (Other functions
            call this `output`, which here is the repaired file.)
        data_dir: folder of the data sets; default $UNBACKDOOR_DATA, else ./data.
        download: whether to fetch a known data set that is missing.
        device: where to run.
        overwrite: whether an existing output may be replaced.
        partial: whether to write even if part of the network could not be read.
        progress: called with (done, total, a note).

    Raises:
        CheckpointError, ArchitectureError: the file cannot be read, is not that network's, or has other classes.
        DataError: the data set was not found.
        SettingError: a setting is out of its range, or no data set was given to a method that needs one.
        MethodError: the method cannot work on this network.
        IncompleteError: part of the network could not be read, and `partial` is false; nothing was written.
        OutputError: the output exists, is the input, or cannot be written.
    """
    from unbackdoor.data import dataset_spec
    from unbackdoor.metrics import check_answer, check_device, measure

    if output is not None:
        checkpoint.check_output(output, overwrite=overwrite, inputs=[source])
    method, attack = as_method(method), as_attack(attack)
    wants = method.needs != "nothing"
    if data is None and (wants or measured):
        asks = f"{method.name} needs {method.needs}" if wants else "measuring needs test images"
        raise SettingError(f"defend: {asks}: give a data set with --data (data=...)")
    if poisoned and (method.needs != "training images" or attack is None):
        raise SettingError(
            f"poisoned: expected 0, got {poisoned}; poisoned images need an attack and a method that uses training "
            f"images (ep), and {method.name} uses {method.needs}"
        )
    check_seed(seed)
    check_device(device)
    if data is not None and attack is not None:
        attack.check_data(dataset_spec(data))
    file = open_model(source, arch=arch, key=key, example=example)
    model = network_of(file).to(device)
    before = after = None
    test = None
    if data is not None and measured:
        test = _load(data, "test", data_dir, download=download, progress=with_note("reading test images", progress))
        check_answer(model, test.spec, name=str(file.checkpoint.path), output=answer)
        before = measure(model, test, attack, output=answer, progress=with_note("measuring before", progress))
    generator = torch.Generator().manual_seed(seed)
    case = Case(network=model, graph=file.graph, example=example, generator=generator, output=answer, progress=progress)
    if wants:
        given, _ = method_images(
            str(data), clean, seed, attack, poisoned, data_dir, download=download, progress=progress
        )
        check_answer(model, given.spec, name=str(file.checkpoint.path), output=answer)
        case = dataclasses.replace(case, images=given.images, labels=given.labels, spec=given.spec)
    outcome, seconds = timed(lambda: method.run(case))
    report = with_source(outcome.report, file)
    if report.data is not None:
        report = dataclasses.replace(report, data=_with_draw(report.data, clean, seed))
    if test is not None:
        after = measure(outcome.model, test, attack, output=answer, progress=with_note("measuring after", progress))
    if output is not None:
        if report.blocks(partial=partial):
            rest = "--partial (partial=True) writes what was repaired"
            if not report.editable:
                rest = "no layer that can be edited was found, so there is nothing to repair"
            raise IncompleteError(f"{source}: {report.gap}; nothing was written; {rest}", report)
        state = outcome.model.state_dict()
        tensors = {
            name: state[name].detach().to("cpu", tensor.dtype) for name, tensor in file.checkpoint.tensors.items()
        }
        report = write_repaired(report, tensors, file, Path(output), overwrite=overwrite)
    return Defended(report, before, after, seconds)


def timed(call: Callable[[], Outcome]) -> tuple[Outcome, float]:
    """A call's result and its seconds; a GPU's earlier work is finished before the clock starts."""

    def now() -> float:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            for device in range(torch.cuda.device_count()):
                torch.cuda.synchronize(device)
        return time.perf_counter()

    started = now()
    return call(), now() - started


def method_images(
    data: str,
    clean: float,
    seed: int,
    attack: Attack | None,
    poisoned: float,
    data_dir: str | Path | None,
    *,
    download: bool,
    progress: Callable[[int, int, str], None],
) -> tuple[LabelledImages, int]:
    """The images for a method or detector, and how many of them carry the trigger."""
    from unbackdoor.data import clean_subset

    train = _load(data, "train", data_dir, download=download, progress=with_note("reading training images", progress))
    if not math.isfinite(clean) or (clean > 1 and clean != int(clean)):
        raise SettingError(f"clean: expected a fraction up to 1, or a whole number of images, got {clean}")
    subset = (
        clean_subset(train, count=int(clean), seed=seed) if clean > 1 else clean_subset(train, share=clean, seed=seed)
    )
    images = subset.data
    if not poisoned or attack is None:
        return images, 0
    return mixture(images, attack, poisoned, seed)


def check_seed(seed: int) -> None:
    """SettingError if a random generator cannot use the seed."""
    if not 0 <= seed < 2**32:
        raise SettingError(f"seed: expected a number from 0 to {2**32 - 1}, got {seed}")


def mixture(images: LabelledImages, attack: Attack, share: float, seed: int) -> tuple[LabelledImages, int]:
    """Poison a share of training images; returns them, and how many carry the trigger.

    Raises:
        SettingError: the share is out of range, or the attack cannot poison more images.
    """
    if not 0 <= share <= 1:
        raise SettingError(f"poisoned: expected a share between 0 and 1, got {share}")
    classes, generator = images.spec.num_classes, torch.Generator().manual_seed(seed)
    poisoned = attack.poison(images.images, images.labels, rate=share, num_classes=classes, generator=generator)
    return dataclasses.replace(images, images=poisoned.images, labels=poisoned.labels), int(poisoned.mask.sum())


def _with_draw(report: DataReport, clean: float, seed: int) -> DataReport:
    return dataclasses.replace(report, share=clean if clean <= 1 else None, seed=seed)


def with_note(note: str, progress: Callable[[int, int, str], None]) -> Callable[[int, int], None]:
    """A progress function of two arguments that adds this note."""
    return lambda done, total: progress(done, total, note)


def _load(
    data: str,
    split: str,
    data_dir: str | Path | None,
    *,
    download: bool,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledImages:
    from unbackdoor.data import load_dataset

    return load_dataset(data, split, data_dir, download=download, progress=progress)
