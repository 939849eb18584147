"""From a model file to a report, and to a repaired file: `scan`, `repair`, `inspect`, `diff`; and `evaluate`.

A network behind `--arch` is built on the meta device, without memory or weights, only to be traced and held against
the file: the file's tensors are scored and edited as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from unbackdoor import checkpoint
from unbackdoor.checkpoint import ARCH_KEY, Checkpoint
from unbackdoor.defences.base import DataFree
from unbackdoor.defences.data_free import LPP
from unbackdoor.errors import ArchitectureError, CheckpointError, IncompleteError, SettingError
from unbackdoor.graph import LayerGraph, layer_graph
from unbackdoor.graph.names import of_tensors
from unbackdoor.models import Arch, parse_arch
from unbackdoor.report import Remark, Report

if TYPE_CHECKING:
    from unbackdoor.attacks import Attack
    from unbackdoor.metrics import Evaluation

#: Characters of a file's own network name that are looked at: a stranger's string must not keep the parser busy.
MAX_ARCH = 200


@dataclass(frozen=True)
class ModelFile:
    """A model file that has been read, and the layers found in it.

    Attributes:
        checkpoint: its tensors.
        arch: the network it was read with, or None where names had to do.
        graph: its layers.
        source: what a method scores: the tensors, or a network that holds them where a weight must be computed.
    """

    checkpoint: Checkpoint
    arch: Arch | None
    graph: LayerGraph
    source: nn.Module | Mapping[str, Tensor]


def open_model(path: str | Path, *, arch: str | Arch | None = None, key: str | None = None) -> ModelFile:
    """Read a model file and find its layers.

    Args:
        path: a safetensors file, or a state dict of torch's.
        arch: as behind `--arch`; without it, the name that `unbackdoor train` left in the file, else names and order.
        key: which entry of a torch file to read, where there are several.

    Raises:
        CheckpointError: the file cannot be read.
        ArchitectureError: the network is unknown, or is not the one in the file.
    """
    found = checkpoint.load(path, key=key)
    network = parse_arch(arch) if isinstance(arch, str) else arch
    hint: Remark | None = None
    if network is None:
        network, hint = _recorded_arch(found)
    if network is None:
        graph = _with_ties(of_tensors(found.tensors, ordered=found.ordered), found.tensors)
        if hint is not None:
            graph = dataclasses.replace(graph, aside=(hint, *graph.aside))
        return ModelFile(found, None, graph, found.tensors)
    model = network.build(device="meta")
    _check_fit(model, found, network)
    graph = layer_graph(model)
    graph = dataclasses.replace(graph, layers=tuple(dataclasses.replace(layer, rule="arch") for layer in graph.layers))
    source: nn.Module | Mapping[str, Tensor] = found.tensors
    if any(layer.parametrization == "other" for layer in graph.layers):
        source = load_weights(network.build(), found, network)
    return ModelFile(found, network, graph, source)


def load_weights(model: nn.Module, found: Checkpoint, arch: Arch) -> nn.Module:
    """Put a file's tensors into a network; every key and shape must match.

    Raises:
        ArchitectureError: they do not.
        CheckpointError: a weight is stored as whole numbers.
    """
    _check_fit(model, found, arch)
    state = model.state_dict()
    for name, tensor in found.tensors.items():
        if state[name].is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(f"{found.path}: {name!r}: expected floating-point numbers, got {_dtype(tensor)}")
    # Older files lack the batch counters, which nothing here reads; nothing else can be missing after the check.
    own = {name: tensor for name, tensor in state.items() if name.endswith("num_batches_tracked")}
    model.load_state_dict({**own, **found.tensors}, assign=True)
    return model.eval()


def scan(
    source: str | Path | nn.Module,
    *,
    arch: str | Arch | None = None,
    method: DataFree | None = None,
    key: str | None = None,
) -> Report:
    """Outlier channels, layer by layer; changes nothing.

    Args:
        source: a model file, or a network.
        arch: as behind `--arch`, for a file.
        method: scores and cuts; LPP with its defaults if None.
        key: which entry of a torch file to read, where there are several.

    Raises:
        CheckpointError, ArchitectureError: the file cannot be read, or is not that network's.
        GraphError: the network could not be read at all.
    """
    method = method or LPP()
    if isinstance(source, nn.Module):
        return method.plan(source).report(action="scan")
    file = open_model(source, arch=arch, key=key)
    report = method.plan(file.source, graph=file.graph).report(action="scan")
    return _with_source(report, file)


def repair(
    source: str | Path,
    output: str | Path | None = None,
    *,
    method: DataFree | None = None,
    arch: str | Arch | None = None,
    key: str | None = None,
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
        overwrite: whether an existing output may be replaced.
        partial: whether to write although part of the network could not be read or paired, or nothing was scored.
        dry_run: report only, and write nothing.

    Raises:
        CheckpointError, ArchitectureError: the file cannot be read, or is not that network's.
        IncompleteError: part of it could not be read or paired, or nothing was scored, and `partial` is false; nothing
            was written.
        OutputError: the output exists, is the input, or cannot be written.
        SettingError: no output was given.
    """
    if output is not None:
        checkpoint.check_output(output, overwrite=overwrite, inputs=[source])
    elif not dry_run:
        raise SettingError("repair: expected an output, or dry_run=True")
    file = open_model(source, arch=arch, key=key)
    plan = (method or LPP()).plan(file.source, graph=file.graph)
    report = _with_source(plan.report(action="repair"), file)
    if dry_run or output is None:
        return dataclasses.replace(report, action="plan")
    gap = _gap(report)
    if gap is not None and not partial:
        raise IncompleteError(
            f"{source}: {gap}; nothing was written; --partial (partial=True) repairs the rest",
            dataclasses.replace(report, action="plan"),
        )
    tensors = _copy_edited(file.checkpoint.tensors, {edit.name for edit in plan.edits}, file.graph)
    plan.apply_(tensors)
    own = file.arch is not None and file.arch.source == "own"
    checkpoint.save(
        output,
        tensors,
        like=file.checkpoint,
        metadata={ARCH_KEY: str(file.arch)} if own else None,
        overwrite=overwrite,
    )
    _read_back(Path(output), tensors, file.checkpoint)
    lost = _not_kept(file.checkpoint, Path(output))
    return dataclasses.replace(report, output=str(output), left_alone=(*report.left_alone, *lost))


@dataclass(frozen=True)
class Difference:
    """What differs between two files in one tensor.

    Attributes:
        name: of the tensor.
        kind: "values", "shape", "dtype", "only in A" or "only in B".
        channels: first-dimension indices with different values.
        total: the size of that dimension.
        detail: shapes or dtypes, for a reader.
    """

    name: str
    kind: str
    channels: tuple[int, ...] = ()
    total: int = 0
    detail: str = ""


def diff(a: str | Path, b: str | Path, *, key: str | None = None) -> list[Difference]:
    """Which channels of which tensors differ, bit by bit, between two model files.

    Raises:
        CheckpointError: a file cannot be read.
    """
    left, right = checkpoint.load(a, key=key).tensors, checkpoint.load(b, key=key).tensors
    found = []
    for name in dict.fromkeys((*left, *right)):
        if name not in right or name not in left:
            found.append(Difference(name, "only in A" if name in left else "only in B"))
            continue
        x, y = left[name], right[name]
        if x.shape != y.shape:
            found.append(Difference(name, "shape", detail=f"{tuple(x.shape)} and {tuple(y.shape)}"))
        elif x.dtype != y.dtype:
            found.append(Difference(name, "dtype", detail=f"{_dtype(x)} and {_dtype(y)}"))
        else:
            rows = _different_rows(x, y)
            if rows:
                found.append(Difference(name, "values", rows, len(x) if x.ndim else 1))
    return found


def evaluate(
    model: nn.Module | str | Path,
    *,
    data: str = "cifar10",
    attack: Attack | None = None,
    arch: str | Arch | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """ACC of a network on a test set, and ASR and RA where an attack is given.

    Args:
        model: a network that expects the data set's normalised images, or a model file.
        data: name of the data set, a data.toml, or a folder of images.
        attack: stamps its trigger on the test images of other classes.
        arch: as behind `--arch`, for a file that does not name its network itself.
        data_dir: folder of the data sets; else $UNBACKDOOR_DATA, else ./data.
        download: whether to fetch a known data set that is not there.
        device: where to run; a network stays where it is if None.
        progress: called with (images done, images in all).

    Raises:
        DataError: the data set was not found.
        ArchitectureError: the network is unknown, not the one in the file, or has another number of classes.
    """
    from unbackdoor.data import load_dataset
    from unbackdoor.train import measure

    if not isinstance(model, nn.Module):
        model = load_model(model, arch=arch)
    test = load_dataset(data, "test", data_dir, download=download)
    if device is not None:
        model = model.to(device)
    return measure(model, test, attack, progress=progress)


def load_model(path: str | Path, *, arch: str | Arch | None = None, key: str | None = None) -> nn.Module:
    """A network with a file's weights, in eval mode.

    Raises:
        CheckpointError: the file cannot be read.
        ArchitectureError: no network is named, or it is not the one in the file.
    """
    found = checkpoint.load(path, key=key)
    network = parse_arch(arch) if isinstance(arch, str) else arch
    if network is None:
        network, hint = _recorded_arch(found)
        if network is None:
            what = "the file does not say which network it is" if hint is None else f"its {hint.path} {hint.reason}"
            raise ArchitectureError(f"{path}: {what}; give --arch (arch=...)")
    return load_weights(network.build(), found, network)


def _recorded_arch(found: Checkpoint) -> tuple[Arch | None, Remark | None]:
    """The network that the file names, if it is one of the package's own and fits: a file must not make code run."""
    text = found.metadata.get(ARCH_KEY)
    if text is None:
        return None, None
    try:
        if len(text) > MAX_ARCH:
            return None, Remark(ARCH_KEY, "metadata", f"is longer than {MAX_ARCH} characters: not used")
        arch = parse_arch(text)
        if arch.source != "own":
            return None, Remark(ARCH_KEY, "metadata", "names a network that is not the package's own: not used")
        with _no_larger_than(found):
            model = arch.build(device="meta")
        _check_fit(model, found, arch)
    except ArchitectureError:
        return None, Remark(ARCH_KEY, "metadata", "names a network that the file does not hold: not used")
    return arch, None


@contextlib.contextmanager
def _no_larger_than(found: Checkpoint) -> Iterator[None]:
    """Stops the building of a network with more parameters than a file holds: its options are the stranger's."""
    left = [len(found.tensors), sum(tensor.numel() for tensor in found.tensors.values())]

    def count(_module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            left[0] -= 1
            left[1] -= parameter.numel()
        if min(left) < 0:
            raise ArchitectureError(f"{found.path}: holds fewer parameters than the network that it names: {name}")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _gap(report: Report) -> str | None:
    """What keeps a report from speaking for the whole network, if anything."""
    if not report.complete:
        count, first = len(report.not_covered), report.not_covered[0]
        return (
            f"{count} {'part' if count == 1 else 'parts'} of it could not be read or paired (the first is "
            f"{first.path!r}: {first.reason})"
        )
    return None if report.layers else "no layer of it was scored"


def _check_fit(model: nn.Module, found: Checkpoint, arch: Arch) -> None:
    """Keys and shapes must match in full."""
    wanted, tensors = model.state_dict(), found.tensors
    missing = [name for name in wanted if name not in tensors and not name.endswith("num_batches_tracked")]
    extra = [name for name in tensors if name not in wanted]
    wrong = [name for name in wanted if name in tensors and wanted[name].shape != tensors[name].shape]
    if not missing and not extra and not wrong:
        return
    parts = []
    if missing:
        parts.append(f"tensors missing from the file: {len(missing)} ({_first(missing)})")
    if extra:
        parts.append(f"tensors that it does not have: {len(extra)} ({_first(extra)})")
    if wrong:
        name = wrong[0]
        parts.append(
            f"tensors of another shape: {len(wrong)} ({name}: expected {tuple(wanted[name].shape)}, "
            f"got {tuple(tensors[name].shape)})"
        )
    rows = {_other_rows(wanted[name], tensors[name]) for name in wrong}
    if not missing and not extra and len({name.rpartition(".")[0] for name in wrong}) == 1 == len(rows) and all(rows):
        classes = rows.pop()
        parts.append(f"its classifier has {classes} rows: try {arch.with_options(num_classes=classes)}")
    else:
        parts.append("give the network that it was saved from with --arch (arch=...)")
    raise ArchitectureError(f"{found.path}: is not {arch}: {'; '.join(parts)}")


def _other_rows(wanted: Tensor, found: Tensor) -> int | None:
    """How many rows a tensor has that differs from what was wanted in that alone."""
    alike = wanted.ndim == found.ndim > 0 and wanted.shape[1:] == found.shape[1:]
    return len(found) if alike else None


def _first(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


def _with_source(report: Report, file: ModelFile) -> Report:
    return dataclasses.replace(
        report,
        source=str(file.checkpoint.path),
        digest=_sha256(file.checkpoint.path),
        arch=None if file.arch is None else str(file.arch),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _with_ties(graph: LayerGraph, tensors: Mapping[str, Tensor]) -> LayerGraph:
    """The layers of a state dict, with the ties that its shared memory tells of."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            groups.setdefault(_memory(tensor), []).append(name)
    aliases = {name: tuple(n for n in group if n != name) for group in groups.values() for name in group if group[1:]}
    layers = tuple(
        dataclasses.replace(layer, tied=True, note=f"shares its weight with {', '.join(aliases[layer.weight])}")
        if layer.weight in aliases
        else layer
        for layer in graph.layers
    )
    return dataclasses.replace(graph, layers=layers, aliases=aliases)


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
                memory = _memory(tensors[alias])
                result[alias] = copies.setdefault(memory, tensors[alias].clone())
    return result


def _memory(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _not_kept(found: Checkpoint, output: Path) -> tuple[Remark, ...]:
    """What a torch file held besides the weights, where the output can hold tensors only."""
    if output.suffix.lower() != ".safetensors" or found.key is None:
        return ()
    others = [str(name) for name in found.container if name != found.key]
    return tuple(Remark(name, "entry", "not kept: a safetensors file holds the weights only") for name in others)


def _read_back(output: Path, tensors: Mapping[str, Tensor], like: Checkpoint) -> None:
    """Compare what is on the disk with what was meant to be there."""
    written = checkpoint.load(output, key=like.key if output.suffix.lower() != ".safetensors" else None).tensors
    same = written.keys() == tensors.keys() and all(
        written[name].dtype == tensors[name].dtype and not _different_rows(written[name], tensors[name])
        for name in tensors
    )
    if not same:
        raise CheckpointError(f"{output}: what was read back is not what was written; do not use this file")


def _different_rows(a: Tensor, b: Tensor) -> tuple[int, ...]:
    """First-dimension indices at which two tensors of the same shape and dtype differ, bit by bit."""
    if a.layout != torch.strided or b.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if a.numel() == 0:
        return ()
    x, y = (t.reshape(len(t), -1) if t.ndim else t.reshape(1, 1) for t in (a, b))
    if x.is_floating_point() or x.is_complex():
        x, y = x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8)
    return tuple((x != y).any(1).nonzero().flatten().tolist())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
