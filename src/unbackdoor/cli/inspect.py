"""`unbackdoor inspect`."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click

from unbackdoor.cli.options import announce, arch_option, input_option, key_option
from unbackdoor.report.escape import short, visible

if TYPE_CHECKING:
    from unbackdoor.api import ModelFile
    from unbackdoor.findings import Remark
    from unbackdoor.findings.layers import LayerGraph


@click.command(epilog="Exit codes: 0 read in full; 2 error, or file refused; 3 part could not be read or paired.")
@click.argument("path")
@arch_option
@input_option
@key_option
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--tensors", "with_tensors", is_flag=True, help="List every tensor too (text form).")
def command(*, path: str, arch: str | None, example: Any, key: str | None, form: str, with_tensors: bool) -> int:
    """Show tensors and layers, which norm follows which layer, and how that was found."""
    from unbackdoor.api import open_model

    announce(arch)
    file = open_model(path, arch=arch, key=key, example=example)
    if form == "json":
        click.echo(json.dumps(_record(file), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(_lines(file, with_tensors=with_tensors)))
    return 3 if file.graph.uncovered or _of_unknown_part(file.graph) else 0


def _record(file: ModelFile) -> dict[str, Any]:
    graph, found = file.graph, file.checkpoint
    return {
        "schema_version": 1,
        "path": str(found.path),
        "format": found.format,
        "key": found.key,
        "prefix": found.prefix,
        "metadata": dict(sorted(found.metadata.items())),
        "arch": None if file.arch is None else str(file.arch),
        "tensors": [
            {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in found.tensors.items()
        ],
        "layers": [dataclasses.asdict(layer) for layer in graph.layers],
        "unpaired_norms": list(graph.unpaired_norms),
        "classifier": graph.classifier,
        "uncovered": [dataclasses.asdict(remark) for remark in graph.uncovered],
        "aside": [dataclasses.asdict(remark) for remark in graph.aside],
    }


def _lines(file: ModelFile, *, with_tensors: bool) -> list[str]:
    graph, found = file.graph, file.checkpoint
    numbers = sum(tensor.numel() for tensor in found.tensors.values())
    lines = [
        f"{visible(str(found.path))}: {found.format}, {len(found.tensors)} tensors, {numbers:,} numbers",
        f"network: {visible(str(file.arch)) if file.arch else 'not named (--arch); paired by names and order'}",
    ]
    if found.key:
        lines.append(f"state dict under {visible(found.key)!r}")
    if found.prefix:
        which = "every name" if not found.unread else "every name of the network"
        lines.append(f"{which} begins with {visible(found.prefix)!r}, left out here")
    if with_tensors:
        lines.append("")
        lines += [
            f"  {short(name, 60):60} {str(tensor.dtype).removeprefix('torch.'):9} {tuple(tensor.shape)}"
            for name, tensor in found.tensors.items()
        ]
    lines += ["", f"  {'layer':40} {'kind':16} {'channels':>8}  norm (how it was found)"]
    for layer in graph.layers:
        norm = f"{short(', '.join(layer.norms), 36) if layer.norms else '-'} ({layer.rule})"
        lines.append(f"  {short(layer.path, 40):40} {layer.kind:16} {layer.out_channels:8}  {norm}")
    lines += ["", f"classifier: {visible(graph.classifier) if graph.classifier else 'none found'}"]
    if graph.unpaired_norms:
        lines.append(f"norms of no single layer ({len(graph.unpaired_norms)}):")
        lines += [f"  {short(path, 90)}" for path in graph.unpaired_norms]
    unknown = _of_unknown_part(graph)
    for title, remarks in (
        ("could not be read or paired", graph.uncovered),
        ("scored and never edited", unknown),
        ("plays no part", graph.aside),
    ):
        if remarks:
            lines.append(f"{title} ({len(remarks)}):")
            lines += [f"  {short(r.path, 48)} ({visible(r.kind)}): {visible(r.reason)}" for r in remarks]
    return lines


def _of_unknown_part(graph: LayerGraph) -> tuple[Remark, ...]:
    """A remark on every layer of which it is not known what its channels are to the network."""
    from unbackdoor.findings import Remark

    return tuple(Remark(x.path, x.kind, x.why) for x in graph.layers if x.part == "unknown")
