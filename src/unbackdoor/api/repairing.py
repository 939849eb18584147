"""`repair`: write a repaired copy of a model file, completely or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor import checkpoint
from unbackdoor.api.arguments import as_method
from unbackdoor.api.damage import MAX_DAMAGE, check_damage, check_limit, with_damage
from unbackdoor.api.images import case_of, check_seed, on_data, trained_on
from unbackdoor.api.reading import ModelFile, memory_of, network_of, open_model, with_source
from unbackdoor.checkpoint import ARCH_KEY, Checkpoint
from unbackdoor.defences.base import Defence
from unbackdoor.defences.data_free import LPP
from unbackdoor.defender.case import Case, Progress, silent
from unbackdoor.errors import CheckpointError, IncompleteError, SettingError
from unbackdoor.findings import Remark, Report
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.inputs import Normalisation, normalisation
from unbackdoor.models import Arch
from unbackdoor.prune import Plan, copy_model


def repair(
    source: str | Path,
    output: str | Path | None = None,
    *,
    method: Defence | str | None = None,
    arch: str | Arch | None = None,
    key: str | None = None,
    example: Any = None,
    data: str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    overwrite: bool = False,
    partial: bool = False,
    dry_run: bool = False,
    max_damage: float | None = MAX_DAMAGE,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Write a repaired copy of a model file, completely or not at all, and read it back to check it.

    Args:
        source: a model file; it is never modified.
        output: the new file; its suffix decides the format. Optional for a dry run only.
        method: a method, or its name; None takes LPP with its defaults.
        arch: the network, as in `--arch`.
        key: which entry of a torch file to read, if there are several.
        example: an input for the network, if its layers cannot be read without one (see `layer_graph`).
        data: the data set that the network is for, whose size and normalisation are taken; none of its images is read.
        mean, std: of the images, one number or one a channel, for pixels from 0 to 1.
        overwrite: whether an existing output may be replaced.
        partial: whether to write even if part of the network could not be read or paired.
        dry_run: only report; write nothing.
        max_damage: points of accuracy that the repair may be predicted to cost; inf allows any loss, and None predicts
            none. Where the network cannot be run the loss is not known, which the report says, and nothing is refused.
        seed: of what a method draws that makes images of its own.
        progress: called with (done, total, a note) by a method that takes long.

    Raises:
        CheckpointError, ArchitectureError: the file cannot be read, is not that network's, or is damaged: most of a
            tensor or layer is NaN.
        IncompleteError: part of the network could not be read or paired and `partial` is false, or no layer can be
            edited; nothing was written.
        DamageError: the repair is predicted to cost too much; nothing was written.
        OutputError: the output exists, is the input, or cannot be written.
        SettingError: no output was given, or `max_damage` is out of its range.
    """
    check_limit(max_damage)
    check_seed(seed)
    given = normalisation(mean, std)
    if output is not None:
        checkpoint.check_output(output, overwrite=overwrite, inputs=[source])
    elif not dry_run:
        raise SettingError("repair: expected an output, or dry_run=True")
    file = open_model(source, arch=arch, key=key, example=example)
    method = LPP() if method is None else as_method(method)
    if max_damage is not None:
        method = method.within(max_damage)
    case = case_of(file, method, seed=seed, example=example, normalisation=given, progress=progress)
    plan = method.plan_for(on_data(case, data))
    report = with_source(plan.report(action="repair"), file)
    _refuse_damaged(plan, file)
    if max_damage is not None and not report.blocks(partial=partial):
        report = _with_damage(report, plan, file, example, data, given)
    if dry_run or output is None:
        return dataclasses.replace(report, action="plan")
    if report.blocks(partial=partial):
        rest = "--partial (partial=True) repairs the rest"
        if not report.editable:
            rest = "no layer that can be edited was found, so there is nothing to repair"
        raise IncompleteError(
            f"{source}: {report.gap}; nothing was written; {rest}", dataclasses.replace(report, action="plan")
        )
    check_damage(dataclasses.replace(report, action="plan"), max_damage, source)
    tensors = _copy_edited(file.checkpoint.tensors, {edit.name for edit in plan.edits}, file.graph)
    plan.apply_(tensors)
    return write_repaired(report, tensors, file, Path(output), overwrite=overwrite)


def _with_damage(
    report: Report, plan: Plan, file: ModelFile, example: Any, data: str | None, given: Normalisation | None
) -> Report:
    """The report with the predicted loss of accuracy, or with why there is no prediction."""
    if not plan.edits:
        return dataclasses.replace(report, damage_unknown="nothing is changed")

    def networks() -> tuple[Case, nn.Module]:
        before = network_of(file)
        after = copy_model(before)
        plan.apply_(after)
        case = Case(
            network=before,
            example=example,
            spec=trained_on(file),
            normalisation=given,
            generator=torch.Generator().manual_seed(0),
        )
        return on_data(case, data), after

    return with_damage(report, networks)


def write_repaired(
    report: Report, tensors: Mapping[str, Tensor], file: ModelFile, output: Path, *, overwrite: bool
) -> Report:
    """Write a repaired file, read it back, and return the report with the output's name.

    Args:
        report: the report on the repair.
        tensors: the file's tensors, repaired.
        file: the original file.
        output: the new file.
        overwrite: whether an existing output may be replaced.
    """
    own = file.arch is not None and file.arch.source == "own"
    checkpoint.save(
        output,
        tensors,
        like=file.checkpoint,
        metadata={ARCH_KEY: str(file.arch)} if own else None,
        overwrite=overwrite,
    )
    _read_back(output, tensors, file.checkpoint)
    lost = tuple(
        Remark(name, "entry", "not kept: a safetensors file only holds weights")
        for name in checkpoint.lost(output, file.checkpoint)
    )
    kept = checkpoint.kept(output, file.checkpoint)
    if kept:
        reason = "kept unchanged; an optimizer's state belongs to the weights before the repair"
        lost = (*lost, Remark(", ".join(kept[:12]) + (", ..." if len(kept) > 12 else ""), "entries", reason))
    return dataclasses.replace(report, output=str(output), left_alone=(*report.left_alone, *lost))


def _refuse_damaged(plan: Plan, file: ModelFile) -> None:
    """CheckpointError if most of a tensor, or of a layer's channels, is NaN: a repair would leave nothing useful."""
    path = file.checkpoint.path
    for name, tensor in file.checkpoint.tensors.items():
        broken = _share_broken(tensor)
        if broken > 0.5:
            raise CheckpointError(
                f"{path}: {name!r}: expected numbers, got NaN for {broken:.0%} of its values; the file is damaged, and "
                "nothing was written"
            )
    if plan.damage is not None:
        raise CheckpointError(f"{path}: {plan.damage}; the file is damaged, and nothing was written")


def _share_broken(tensor: Tensor) -> float:
    """The share of a tensor's values that are NaN; 0 for integers. (Infinity is allowed: attention masks hold it.)"""
    computable = tensor.layout == torch.strided and not tensor.is_quantized and tensor.element_size() > 1
    if not (computable and tensor.is_floating_point() and tensor.numel()):
        return 0.0
    return float(torch.isnan(tensor).double().mean())


def _copy_edited(tensors: Mapping[str, Tensor], edited: set[str], graph: LayerGraph) -> dict[str, Tensor]:
    """The same mapping, with copies of the tensors that will change.

    Names that the network ties still share memory. Other names that shared memory in the file keep their old content,
    since they are different tensors of the network.
    """
    result = dict(tensors)
    for name in edited:
        copies: dict[tuple[object, ...], Tensor] = {}
        for alias in (name, *graph.aliases.get(name, ())):
            if alias in tensors and result[alias] is tensors[alias]:
                memory = memory_of(tensors[alias])
                result[alias] = copies.setdefault(memory, tensors[alias].clone())
    return result


def _read_back(output: Path, tensors: Mapping[str, Tensor], like: Checkpoint) -> None:
    """CheckpointError if the file on the disk does not hold these tensors."""
    if not checkpoint.holds(output, tensors, like):
        raise CheckpointError(f"{output}: the file on the disk differs from what was written; do not use it")
