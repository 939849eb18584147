"""Find the layers of a model file, and put its weights into a network.

The network of `--arch` is built on the meta device, without memory or weights, only to be traced and compared with the
file. The file's own tensors are scored and edited.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from unbackdoor import checkpoint
from unbackdoor.api.arguments import as_arch
from unbackdoor.checkpoint import ARCH_KEY, MODEL_NAME, Checkpoint, Contents
from unbackdoor.errors import ArchitectureError, CheckpointError, SettingError
from unbackdoor.findings import Remark, Report
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph import layer_graph
from unbackdoor.graph.readers.names import of_tensors
from unbackdoor.inputs import placed, refuse_example
from unbackdoor.models import Arch, parse_arch

#: Longest network name in a file that is parsed: an untrusted string must not take long.
MAX_ARCH = 200

#: The kind of a remark on the network's name in a file.
_NAME = "network's name"


@dataclass(frozen=True)
class ModelFile:
    """A model file that has been read, and the layers found in it.

    Attributes:
        checkpoint: its tensors.
        arch: the network it was read with; None if its layers were found by their names.
        graph: its layers.
        source: what a method scores: the tensors, or a network with them if some weights must be computed.
        data: what the file calls its data set, if it says so.
    """

    checkpoint: Checkpoint
    arch: Arch | None
    graph: LayerGraph
    source: nn.Module | Mapping[str, Tensor]
    data: str | None = None


def open_model(
    path: str | Path, *, arch: str | Arch | None = None, key: str | None = None, example: Any = None
) -> ModelFile:
    """Read a model file and find its layers.

    Args:
        path: a safetensors file, or a PyTorch state dict.
        arch: the network, as in `--arch`. Without it, the name that `unbackdoor train` or BackdoorBench wrote into the
            file is used, else the layers that the file's format stores, else the tensors' names and order.
        key: which entry of a torch file to read, if there are several.
        example: an input for the network, if its layers cannot be read without one (see `layer_graph`).

    Raises:
        CheckpointError: the file cannot be read.
        ArchitectureError: the network is unknown, or is not the one in the file.
        SettingError: an example was given, but no network to run it on.
    """
    network = as_arch(arch)
    contents = checkpoint.read(path)
    hint: Remark | None = None
    if network is None:
        network, hint = _recorded_arch(contents, key)
    if network is None and contents.graph is not None:
        refuse_example(path, example)
        found = checkpoint.choose(contents, key)
        graph = _with_remarks(_checked(contents.graph, found), found)
        return ModelFile(found, None, graph, found.tensors, contents.data)
    if network is None:
        refuse_example(path, example)
        found = checkpoint.folded(checkpoint.choose(contents, key))
        graph = _with_ties(of_tensors(found.tensors, ordered=found.ordered), found.tensors)
        if hint is not None:
            graph = dataclasses.replace(graph, aside=(hint, *graph.aside))
        return ModelFile(found, None, _with_remarks(graph, found), found.tensors, contents.data)
    model = network.build(device="meta")
    found = _fitted(contents, key, model, network)
    graph = layer_graph(model, None if example is None else placed(example, model))
    graph = dataclasses.replace(graph, layers=tuple(dataclasses.replace(layer, rule="arch") for layer in graph.layers))
    source: nn.Module | Mapping[str, Tensor] = found.tensors
    if any(layer.parametrization == "other" for layer in graph.layers):
        source = load_weights(network.build(), found, network)
    return ModelFile(found, network, _with_remarks(graph, found), source, contents.data)


def load_model(path: str | Path, *, arch: str | Arch | None = None, key: str | None = None) -> nn.Module:
    """A network with a file's weights, in eval mode.

    Raises:
        CheckpointError: the file cannot be read.
        ArchitectureError: no network is named, or it is not the one in the file.
    """
    network = as_arch(arch)
    contents = checkpoint.read(path)
    if network is None:
        network, hint = _recorded_arch(contents, key)
        if network is None:
            what = "the file does not name its network" if hint is None else f"its {hint.path} {hint.reason}"
            raise ArchitectureError(f"{path}: {what}; give the network with --arch (arch=...)")
    model = network.build()
    return load_weights(model, _fitted(contents, key, model, network), network)


def network_of(file: ModelFile) -> nn.Module:
    """A network with the weights of a file that has been read, in eval mode.

    Raises:
        ArchitectureError: it was read without naming its network.
    """
    if file.arch is None:
        found = next((f": its {hint.path} {hint.reason}" for hint in file.graph.aside if hint.kind == _NAME), "")
        raise ArchitectureError(
            f"{file.checkpoint.path}: expected a file that names its network{found}; give the network with --arch "
            "(arch=...)"
        )
    return load_weights(file.arch.build(), file.checkpoint, file.arch)


def load_weights(model: nn.Module, found: Checkpoint, arch: Arch) -> nn.Module:
    """Put a file's tensors into a network; all names and shapes must match.

    Raises:
        ArchitectureError: they do not match.
        CheckpointError: a weight is stored as integers.
    """
    _check_fit(model, found, arch)
    state: Mapping[str, Tensor] = model.state_dict()
    for name, tensor in found.tensors.items():
        if state[name].is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(f"{found.path}: {name!r}: expected floating-point numbers, got {dtype_name(tensor)}")
    # After the check, only two things can be missing: batch counters, which older files lack and nothing here reads,
    # and what a module stores besides tensors.
    own = {name: value for name, value in state.items() if name not in found.tensors}
    model.load_state_dict(_tied({**own, **found.tensors}, model), assign=True)
    return model.eval()


def _tied(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The same tensors, with equal ones tied again if they are one parameter of the network under several names."""
    result = dict(tensors)
    first: dict[int, str] = {}
    for name, own in _own_tensors(model).items():
        twin = first.setdefault(id(own), name)
        one, other = result[name], result[twin]
        if twin == name or not isinstance(own, nn.Parameter) or one.dtype != other.dtype:
            continue
        if torch.equal(one, other):
            if not isinstance(result[twin], nn.Parameter):
                result[twin] = nn.Parameter(result[twin], requires_grad=own.requires_grad)
            result[name] = result[twin]
    return result


def with_source(report: Report, file: ModelFile) -> Report:
    return dataclasses.replace(
        report,
        source=str(file.checkpoint.path),
        digest=_sha256(file.checkpoint.path),
        arch=None if file.arch is None else str(file.arch),
    )


def _fitted(contents: Contents, key: str | None, model: nn.Module, arch: Arch) -> Checkpoint:
    """All tensors of a network, from a file.

    Raises:
        ArchitectureError: some are missing, or do not match.
    """
    found = checkpoint.fit(contents, _own_tensors(model), key)
    _check_fit(model, found, arch)
    return found


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state dict; a parameter under several names is one object."""
    state: Mapping[str, object] = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _recorded_arch(contents: Contents, key: str | None) -> tuple[Arch | None, Remark | None]:
    """The network that the file names, if it is built into this package and matches: a file must not make code run."""
    text = contents.metadata.get(ARCH_KEY)
    if text is None:
        return _backdoorbench_arch(contents, key)
    if len(text) > MAX_ARCH:
        return None, Remark(ARCH_KEY, _NAME, f"is longer than {MAX_ARCH} characters: not used")
    try:
        arch = parse_arch(text)
        if arch.source != "own":
            return None, Remark(ARCH_KEY, _NAME, "names a network that is not the package's own: not used")
        _check_recorded(arch, contents, key)
    except ArchitectureError:
        return None, Remark(ARCH_KEY, _NAME, "names a network that the file does not hold: not used")
    return arch, None


def _backdoorbench_arch(contents: Contents, key: str | None) -> tuple[Arch | None, Remark | None]:
    """The network that BackdoorBench's `model_name` and `num_classes` name, if this package or torchvision has it."""
    named = checkpoint.network_named(contents.content)
    if named is None:
        return None, None
    name, classes = named
    found = checkpoint.choose(contents, key)
    has_rows = any(tensor.ndim and len(tensor) == classes for tensor in found.tensors.values())
    if has_rows and re.fullmatch(r"[a-z][a-z0-9_]{1,40}", name):
        for source in ("own", "torchvision"):
            arch = Arch(source, name, {"num_classes": classes})
            with contextlib.suppress(ArchitectureError, SettingError):
                _check_recorded(arch, contents, key)
                return arch, None
    return None, Remark(MODEL_NAME, _NAME, f"{name[:40]!r} is not a known network that matches the file: not used")


def _check_recorded(arch: Arch, contents: Contents, key: str | None) -> None:
    """ArchitectureError if the network that the file names does not match its tensors."""
    with _no_larger_than(checkpoint.choose(contents, key)):
        model = arch.build(device="meta")
    _fitted(contents, key, model, arch)


@contextlib.contextmanager
def _no_larger_than(found: Checkpoint) -> Iterator[None]:
    """Stop building a network with more parameters than the file holds: an untrusted file chose its options."""
    left = [len(found.tensors), sum(tensor.numel() for tensor in found.tensors.values())]

    def count(_module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            left[0] -= 1
            left[1] -= parameter.numel()
        if min(left) < 0:
            raise ArchitectureError(f"{found.path}: holds fewer parameters than the network it names: {name}")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _check_fit(model: nn.Module, found: Checkpoint, arch: Arch) -> None:
    """ArchitectureError unless all names and shapes match."""
    wanted, tensors = _own_tensors(model), found.tensors
    missing = [name for name in wanted if name not in tensors and not name.endswith("num_batches_tracked")]
    extra = [name for name in tensors if name not in wanted]
    wrong = [name for name in wanted if name in tensors and wanted[name].shape != tensors[name].shape]
    if not missing and not extra and not wrong:
        return
    parts = []
    if missing:
        parts.append(f"tensors missing from the file: {len(missing)} ({_first(missing)})")
    if extra:
        parts.append(f"tensors that this network does not have: {len(extra)} ({_first(extra)})")
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
        parts.append("give the network that was saved, with --arch (arch=...)")
    raise ArchitectureError(f"{found.path}: is not {arch}: {'; '.join(parts)}")


def _other_rows(wanted: Tensor, found: Tensor) -> int | None:
    """A tensor's number of rows, if it differs from the wanted tensor only in that; else None."""
    alike = wanted.ndim == found.ndim > 0 and wanted.shape[1:] == found.shape[1:]
    return len(found) if alike else None


def _first(names: Sequence[str], count: int = 2) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checked(graph: LayerGraph, found: Checkpoint) -> LayerGraph:
    """The layers that a file describes.

    Raises:
        CheckpointError: a layer names a tensor that the file does not hold.
    """
    norms = graph.norms.values()
    named = [name for layer in graph.layers for name in (layer.weight, layer.bias)]
    named += [name for norm in norms for name in (norm.weight, norm.bias, norm.mean, norm.var)]
    missing = [name for name in named if name is not None and name not in found.tensors]
    missing += [path for layer in graph.layers for path in layer.norms if path not in graph.norms]
    if missing:
        raise CheckpointError(f"{found.path}: its layers name tensors that it does not hold: {_first(missing)}")
    return graph


def _with_ties(graph: LayerGraph, tensors: Mapping[str, Tensor]) -> LayerGraph:
    """The same layers, marked as tied if their weights share memory."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            groups.setdefault(memory_of(tensor), []).append(name)
    aliases = {name: tuple(n for n in group if n != name) for group in groups.values() for name in group if group[1:]}
    layers = tuple(
        dataclasses.replace(layer, tied=True, note=f"shares its weight with {', '.join(aliases[layer.weight])}")
        if layer.weight in aliases
        else layer
        for layer in graph.layers
    )
    return dataclasses.replace(graph, layers=layers, aliases=aliases)


def _with_remarks(graph: LayerGraph, found: Checkpoint) -> LayerGraph:
    """The same graph, with remarks on what was not read from the file, and on how it stores tensors."""
    matrices = [name for name in found.unread if found.state[name].ndim > 1]
    others = [name for name in found.unread if found.state[name].ndim < 2]
    uncovered = [Remark(_first(matrices, 4), "tensors", _outside(found))] if matrices else []
    aside = [Remark(_first(others, 4), "tensors", _outside(found))] if others else []
    if found.passed_over:
        reason = "not read, and not kept by a repair"
        if found.objects:
            objects = _first(found.objects, 12)
            reason += f"; they hold pickled objects, whose code runs if another program opens this file: {objects}"
        aside.append(Remark(_first(found.passed_over, 12), "entries", reason))
    if found.copies:
        reason = f"not read: only {found.key or 'the whole'!r} is; a repair leaves them unchanged"
        aside.append(Remark(_first(found.copies, 12), "state dicts", reason))
    renamed, left_out, folds = found.renamed(), found.left_out(), found.folded()
    if renamed:
        name, other = next(iter(renamed.items()))
        reason = f"has another name in the file ({other}), under which a repair writes it back"
        aside.append(Remark(name, f"{len(renamed)} of the names", reason))
    if left_out:
        aside.append(
            Remark(_first(left_out, 4), "tied tensors", "stored only under their other name, as in the repaired file")
        )
    for name, parts in folds.items():
        kind = found.stored[name].fold
        aside.append(Remark(name, kind, f"stored in parts ({' and '.join(parts)}), which a repair writes back"))
    return dataclasses.replace(graph, uncovered=(*graph.uncovered, *uncovered), aside=(*graph.aside, *aside))


def _outside(found: Checkpoint) -> str:
    return f"outside the network, whose names begin with {found.prefix!r}: not read, and left unchanged by a repair"


def memory_of(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
