"""`defend`: repair a model file by any method, with the images that it needs, and measure it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unbackdoor import checkpoint
from unbackdoor.api.arguments import as_attack, as_method
from unbackdoor.api.damage import MAX_DAMAGE, check_damage, check_limit, with_damage
from unbackdoor.api.images import case_with_network, check_poisoned, check_seed, with_images, with_note
from unbackdoor.api.reading import open_model, with_source
from unbackdoor.api.repairing import write_repaired
from unbackdoor.defences.base import Defence, Outcome
from unbackdoor.errors import IncompleteError, SettingError
from unbackdoor.findings import DataReport, Defended
from unbackdoor.models import Arch

if TYPE_CHECKING:
    from unbackdoor.attacks import Attack


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
    max_damage: float | None = MAX_DAMAGE,
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
        measured: whether ACC (and with an attack ASR, RA and the target's recall) are measured on the test set,
            before and after.
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
        max_damage: points of accuracy that the repair may be predicted to cost if it is written, as in `repair`.
        progress: called with (done, total, a note).

    Raises:
        CheckpointError, ArchitectureError: the file cannot be read, is not that network's, or has other classes.
        DataError: the data set was not found.
        SettingError: a setting is out of its range, or no data set was given to a method that needs one.
        MethodError: the method cannot work on this network.
        IncompleteError: part of the network could not be read, and `partial` is false; nothing was written.
        DamageError: the repair is predicted to cost too much; nothing was written.
        OutputError: the output exists, is the input, or cannot be written.
    """
    from unbackdoor.data import dataset_spec, load_dataset
    from unbackdoor.metrics import check_answer, check_device, measure

    if output is not None:
        checkpoint.check_output(output, overwrite=overwrite, inputs=[source])
    check_limit(max_damage)
    method, attack = as_method(method), as_attack(attack)
    if output is not None and max_damage is not None:
        method = method.within(max_damage)
    wants = method.needs != "nothing"
    if data is None and (wants or measured):
        asks = f"{method.name} needs {method.needs}" if wants else "measuring needs test images"
        raise SettingError(f"defend: {asks}: give a data set with --data (data=...)")
    check_poisoned(poisoned, attack, kind="method", example="ep", name=method.name, needs=method.needs)
    check_seed(seed)
    check_device(device)
    if data is not None and attack is not None:
        attack.check_data(dataset_spec(data))
    file = open_model(source, arch=arch, key=key, example=example)
    case = case_with_network(file, device=device, seed=seed, example=example, output=answer, progress=progress)
    if data is not None and case.spec is None:
        case = dataclasses.replace(case, spec=dataset_spec(data))  # for what makes images of its own
    model = case.module
    before = after = None
    test = None
    if data is not None and measured:
        test = load_dataset(
            data, "test", data_dir, download=download, progress=with_note("reading test images", progress)
        )
        check_answer(model, test.spec, name=str(file.checkpoint.path), output=answer)
        before = measure(model, test, attack, output=answer, progress=with_note("measuring before", progress))
    if wants:
        case = with_images(case, file, str(data), clean, seed, attack, poisoned, data_dir, download=download)
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
        if max_damage is not None:
            fresh = dataclasses.replace(case, generator=torch.Generator().manual_seed(0))
            report = with_damage(report, lambda: (fresh, outcome.model))
            check_damage(report, max_damage, source)
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


def _with_draw(report: DataReport, clean: float, seed: int) -> DataReport:
    return dataclasses.replace(report, share=clean if clean <= 1 else None, seed=seed)
