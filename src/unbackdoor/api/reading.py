"""Find the layers of a model file, and put its weights into a network.

A network behind `--arch` is built on the meta device, without memory or weights, only to be traced and held against
the file: the file's tensors are scored and edited as they are.
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
from unbackdoor.checkpoint import ARCH_KEY, MODEL_NAME, Checkpoint, Contents
from unbackdoor.defences.base import Defence
from unbackdoor.defender.case import Case
from unbackdoor.errors import ArchitectureError, CheckpointError, SettingError
from unbackdoor.findings import Remark, Report
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph import layer_graph
from unbackdoor.graph.readers.names import of_tensors
from unbackdoor.inputs import placed, refuse_example
from unbackdoor.models import Arch, parse_arch

#: Characters of a file's own network name that are looked at: a stranger's string must not keep the parser busy.
MAX_ARCH = 200

#: The kind of a remark on the name that a file gives its network.
_NAME = "network's name"


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


def open_model(
    path: str | Path, *, arch: str | Arch | None = None, key: str | None = None, example: Any = None
) -> ModelFile:
    """Read a model file and find its layers.

    Args:
        path: a safetensors file, or a state dict of torch's.
        arch: as behind `--arch`; without it, the name that `unbackdoor train` or BackdoorBench left in the file, else
            the layers that the file's format says, else names and order.
        key: which entry of a torch file to read, where there are several.
        example: what the network takes, where its layers cannot be read without (see `layer_graph`).

    Raises:
        CheckpointError: the file cannot be read.
        ArchitectureError: the network is unknown, or is not the one in the file.
        SettingError: an example was given, and no network to run it on.
    """
    contents = checkpoint.read(path)
    network = parse_arch(arch) if isinstance(arch, str) else arch
    hint: Remark | None = None
    if network is None:
        network, hint = _recorded_arch(contents, key)
    if network is None and contents.graph is not None:
        refuse_example(path, example)
        found = checkpoint.choose(contents, key)
        graph = _with_remarks(_checked(contents.graph, found), found)
        return ModelFile(found, None, graph, found.tensors)
    if network is None:
        refuse_example(path, example)
        found = checkpoint.folded(checkpoint.choose(contents, key))
        graph = _with_ties(of_tensors(found.tensors, ordered=found.ordered), found.tensors)
        if hint is not None:
            graph = dataclasses.replace(graph, aside=(hint, *graph.aside))
        return ModelFile(found, None, _with_remarks(graph, found), found.tensors)
    model = network.build(device="meta")
    found = _fitted(contents, key, model, network)
    graph = layer_graph(model, None if example is None else placed(example, model))
    graph = dataclasses.replace(graph, layers=tuple(dataclasses.replace(layer, rule="arch") for layer in graph.layers))
    source: nn.Module | Mapping[str, Tensor] = found.tensors
    if any(layer.parametrization == "other" for layer in graph.layers):
        source = load_weights(network.build(), found, network)
    return ModelFile(found, network, _with_remarks(graph, found), source)


def load_model(path: str | Path, *, arch: str | Arch | None = None, key: str | None = None) -> nn.Module:
    """A network with a file's weights, in eval mode.

    Raises:
        CheckpointError: the file cannot be read.
        ArchitectureError: no network is named, or it is not the one in the file.
    """
    contents = checkpoint.read(path)
    network = parse_arch(arch) if isinstance(arch, str) else arch
    if network is None:
        network, hint = _recorded_arch(contents, key)
        if network is None:
            what = "the file does not say which network it is" if hint is None else f"its {hint.path} {hint.reason}"
            raise ArchitectureError(f"{path}: {what}; give --arch (arch=...)")
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
            f"{file.checkpoint.path}: expected a file that names its network{found}; give --arch (arch=...)"
        )
    return load_weights(file.arch.build(), file.checkpoint, file.arch)


def load_weights(model: nn.Module, found: Checkpoint, arch: Arch) -> nn.Module:
    """Put a file's tensors into a network; every key and shape must match.

    Raises:
        ArchitectureError: they do not.
        CheckpointError: a weight is stored as whole numbers.
    """
    _check_fit(model, found, arch)
    state: Mapping[str, Tensor] = model.state_dict()
    for name, tensor in found.tensors.items():
        if state[name].is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(f"{found.path}: {name!r}: expected floating-point numbers, got {dtype_name(tensor)}")
    # Older files lack the batch counters, which nothing here reads; nothing else can be missing after the check but
    # what a module keeps besides tensors.
    own = {name: value for name, value in state.items() if name not in found.tensors}
    model.load_state_dict(_tied({**own, **found.tensors}, model), assign=True)
    return model.eval()


def _tied(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The same tensors; what is one parameter of the network under several names, and equal, is one again."""
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


def case_of(file: ModelFile, method: Defence, *, seed: int = 0) -> Case:
    """What a method is given of a file where there are no images.

    Args:
        file: as read.
        method: one that needs nothing beside the network.
        seed: of everything that it draws.

    Raises:
        SettingError: it needs images.
    """
    if method.needs != "nothing":
        raise SettingError(f"{method.name} needs {method.needs}: defend takes a data set, scan and repair take none")
    network = network_of(file) if method.needs_gradients and file.arch is not None else file.source
    return Case(network=network, graph=file.graph, generator=torch.Generator().manual_seed(seed))


def with_source(report: Report, file: ModelFile) -> Report:
    return dataclasses.replace(
        report,
        source=str(file.checkpoint.path),
        digest=_sha256(file.checkpoint.path),
        arch=None if file.arch is None else str(file.arch),
    )


def _fitted(contents: Contents, key: str | None, model: nn.Module, arch: Arch) -> Checkpoint:
    """The tensors of a file that are a network's, in full.

    Raises:
        ArchitectureError: they are not there.
    """
    found = checkpoint.fit(contents, _own_tensors(model), key)
    _check_fit(model, found, arch)
    return found


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a network keeps in files, by name; a parameter under several names is one object."""
    state: Mapping[str, object] = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _recorded_arch(contents: Contents, key: str | None) -> tuple[Arch | None, Remark | None]:
    """The network that the file names, if it is one of the package's own and fits: a file must not make code run."""
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
    """The network behind `model_name` and `num_classes`: of the package's own and torchvision's the one that fits."""
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
    return None, Remark(MODEL_NAME, _NAME, f"{name[:40]!r} is no network known here that fits the file: not used")


def _check_recorded(arch: Arch, contents: Contents, key: str | None) -> None:
    """ArchitectureError unless a network that a stranger named is the one in the file."""
    with _no_larger_than(checkpoint.choose(contents, key)):
        model = arch.build(device="meta")
    _fitted(contents, key, model, arch)


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


def _check_fit(model: nn.Module, found: Checkpoint, arch: Arch) -> None:
    """Keys and shapes must match in full."""
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


def _first(names: Sequence[str], count: int = 2) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checked(graph: LayerGraph, found: Checkpoint) -> LayerGraph:
    """The layers that a file says it has.

    Raises:
        CheckpointError: one speaks of a tensor that the file does not hold.
    """
    norms = graph.norms.values()
    named = [name for layer in graph.layers for name in (layer.weight, layer.bias)]
    named += [name for norm in norms for name in (norm.weight, norm.bias, norm.mean, norm.var)]
    missing = [name for name in named if name is not None and name not in found.tensors]
    missing += [layer.norm for layer in graph.layers if layer.norm is not None and layer.norm not in graph.norms]
    if missing:
        raise CheckpointError(f"{found.path}: its layers name tensors that it does not hold: {_first(missing)}")
    return graph


def _with_ties(graph: LayerGraph, tensors: Mapping[str, Tensor]) -> LayerGraph:
    """The layers of a state dict, with the ties that its shared memory tells of."""
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
    """The same graph, with remarks on what nobody looked at in the file, and on what it holds otherwise."""
    matrices = [name for name in found.unread if found.state[name].ndim > 1]
    others = [name for name in found.unread if found.state[name].ndim < 2]
    uncovered = [Remark(_first(matrices, 4), "tensors", _outside(found))] if matrices else []
    aside = [Remark(_first(others, 4), "tensors", _outside(found))] if others else []
    if found.passed_over:
        reason = "not read, and not kept by a repair"
        if found.objects:
            objects = _first(found.objects, 12)
            reason += f"; pickled objects in them, whose code runs where others open this file: {objects}"
        aside.append(Remark(_first(found.passed_over, 12), "entries", reason))
    if found.copies:
        reason = f"not read: only {found.key or 'the whole'!r} is; a repair leaves what is in them as it is"
        aside.append(Remark(_first(found.copies, 12), "state dicts", reason))
    renamed, left_out, folds = found.renamed(), found.left_out(), found.folded()
    if renamed:
        name, other = next(iter(renamed.items()))
        reason = f"called otherwise in the file ({other}), and written back under these names"
        aside.append(Remark(name, f"{len(renamed)} of the names", reason))
    if left_out:
        aside.append(Remark(_first(left_out, 4), "tied tensors", "in the file under their other name, and so written"))
    for name, parts in folds.items():
        kind = found.stored[name].fold
        aside.append(Remark(name, kind, f"made of {' and '.join(parts)}; a repair writes these, so that they give it"))
    return dataclasses.replace(graph, uncovered=(*graph.uncovered, *uncovered), aside=(*graph.aside, *aside))


def _outside(found: Checkpoint) -> str:
    return f"outside of the network, whose names begin with {found.prefix!r}: not read, and kept as it is by a repair"


def memory_of(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
