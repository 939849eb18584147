"""`repair`: a repaired copy of a model file, whole or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbackdoor import checkpoint
from unbackdoor.api.reading import ModelFile, case_of, memory_of, open_model, with_source
from unbackdoor.checkpoint import ARCH_KEY, Checkpoint
from unbackdoor.defences.base import Defence
from unbackdoor.defences.data_free import LPP
from unbackdoor.errors import CheckpointError, IncompleteError, SettingError
from unbackdoor.findings import Remark, Report
from unbackdoor.graph import LayerGraph
from unbackdoor.models import Arch
from unbackdoor.prune import Plan


def repair(
    source: str | Path,
    output: str | Path | None = None,
    *,
    method: Defence | None = None,
    arch: str | Arch | None = None,
    key: str | None = None,
    example: Any = None,
    overwrite: bool = False,
    partial: bool = False,
    dry_run: bool = False,
) -> Report:
    """Write a repaired copy of a model file; it appears whole, or not at all, and is read back.

    Args:
        source: a model file; it is never modified.
        output: the new file; its suffix decides the format. Only a dry run may do without.
        method: LPP with its defaults if None.
        arch: as behind `--arch`.
        key: which entry of a torch file to read, where there are several.
        example: what the network takes, where its layers cannot be read without (see `layer_graph`).
        overwrite: whether an existing output may be replaced.
        partial: whether to write although part of the network could not be read or paired.
        dry_run: report only, and write nothing.

    Raises:
        CheckpointError, ArchitectureError: the file cannot be read, or is not that network's, or a whole tensor or
            layer of it is broken.
        IncompleteError: part of it could not be read or paired and `partial` is false, or nothing was read that may be
            edited; nothing was written.
        OutputError: the output exists, is the input, or cannot be written.
        SettingError: no output was given.
    """
    if output is not None:
        checkpoint.check_output(output, overwrite=overwrite, inputs=[source])
    elif not dry_run:
        raise SettingError("repair: expected an output, or dry_run=True")
    file = open_model(source, arch=arch, key=key, example=example)
    method = method or LPP()
    plan = method.plan_for(case_of(file, method))
    report = with_source(plan.report(action="repair"), file)
    _refuse_damaged(plan, file)
    if dry_run or output is None:
        return dataclasses.replace(report, action="plan")
    if report.gap is not None and not (partial and report.editable):
        rest = "--partial (partial=True) repairs the rest"
        if not report.editable:
            rest = "nothing was read that may be edited, so that there is nothing to repair"
        raise IncompleteError(
            f"{source}: {report.gap}; nothing was written; {rest}", dataclasses.replace(report, action="plan")
        )
    tensors = _copy_edited(file.checkpoint.tensors, {edit.name for edit in plan.edits}, file.graph)
    plan.apply_(tensors)
    return write_repaired(report, tensors, file, Path(output), overwrite=overwrite)


def write_repaired(
    report: Report, tensors: Mapping[str, Tensor], file: ModelFile, output: Path, *, overwrite: bool
) -> Report:
    """Write a repaired file's tensors, read them back, and say where they are.

    Args:
        report: of the repair.
        tensors: the file's, with new content.
        file: the file they come from.
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
        Remark(name, "entry", "not kept: a safetensors file holds the weights only")
        for name in checkpoint.lost(output, file.checkpoint)
    )
    kept = checkpoint.kept(output, file.checkpoint)
    if kept:
        reason = "kept as they were; what an optimizer remembers belongs to the weights before the repair"
        lost = (*lost, Remark(", ".join(kept[:12]) + (", ..." if len(kept) > 12 else ""), "entries", reason))
    return dataclasses.replace(report, output=str(output), left_alone=(*report.left_alone, *lost))


def _refuse_damaged(plan: Plan, file: ModelFile) -> None:
    """CheckpointError where most of a tensor, or of a layer's channels, is no number: nothing sound would be left."""
    path = file.checkpoint.path
    for name, tensor in file.checkpoint.tensors.items():
        broken = _share_broken(tensor)
        if broken > 0.5:
            raise CheckpointError(
                f"{path}: {name!r}: expected numbers, got NaN in {broken:.0%} of its places; the file is damaged, and "
                "nothing was written"
            )
    if plan.damage is not None:
        raise CheckpointError(f"{path}: {plan.damage}; the file is damaged, and nothing was written")


def _share_broken(tensor: Tensor) -> float:
    """Which share of a tensor is NaN; 0 of a kind that cannot be. (Infinity may be meant: masks hold it.)"""
    computable = tensor.layout == torch.strided and not tensor.is_quantized and tensor.element_size() > 1
    if not (computable and tensor.is_floating_point() and tensor.numel()):
        return 0.0
    return float(torch.isnan(tensor).double().mean())


def _copy_edited(tensors: Mapping[str, Tensor], edited: set[str], graph: LayerGraph) -> dict[str, Tensor]:
    """The same mapping with copies of the tensors that will change.

    Names of one tensor of the network go on sharing memory where they did. Others that shared it, as a file may have
    it, keep their content: to the network they are not the same tensor.
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
    """Compare what is on the disk with what was meant to be there."""
    if not checkpoint.holds(output, tensors, like):
        raise CheckpointError(f"{output}: what was read back is not what was written; do not use this file")
