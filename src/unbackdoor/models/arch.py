"""From what a user writes behind `--arch` to a network.

    resnet18                        one of the package's own
    resnet18:width=16               with options, separated by commas
    torchvision:resnet18            torchvision's, by name
    timm:resnet50                   timm's, by name
    path/to/net.py:build            the function `build` of that file: this RUNS the file

No weights are ever downloaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unbackdoor.errors import ArchitectureError, SettingError
from unbackdoor.models import densenet, mixer, mobilenet_v2, preact_resnet, resnet, vgg, vit, wide_resnet
from unbackdoor.registry import Registry
from unbackdoor.settings import read_options, write_options

ARCHITECTURES: Registry[Callable[..., nn.Module]] = Registry("network")
for _build in (
    resnet.resnet18,
    resnet.resnet34,
    resnet.resnet50,
    resnet.resnet18_gn,
    preact_resnet.preactresnet18,
    wide_resnet.wideresnet16,
    vgg.vgg16_bn,
    vgg.vgg16_bn_elu,
    vgg.vgg19_bn,
    vgg.vgg19,
    mobilenet_v2.mobilenetv2,
    densenet.densenet121,
    vit.vit_small,
    mixer.mixer_small,
):
    ARCHITECTURES.add(_build.__name__, _build)


@dataclass(frozen=True)
class Arch:
    """A parsed `--arch`.

    Attributes:
        source: "own", "torchvision", "timm" or "file".
        name: the network's name, or the function's.
        options: keyword arguments for it.
        file: the Python file, for source "file".
    """

    source: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None

    @property
    def runs_code(self) -> bool:
        """Whether building it executes a file that the user named."""
        return self.source == "file"

    def __str__(self) -> str:
        head = {"own": self.name, "file": f"{self.file}:{self.name}"}.get(self.source, f"{self.source}:{self.name}")
        options = write_options(self.options)
        return f"{head}:{options}" if options else head

    def with_options(self, **options: Any) -> Arch:
        """The same network with more options."""
        return Arch(self.source, self.name, {**self.options, **options}, self.file)

    def for_classes(self, count: int) -> Arch:
        """The same network with `count` outputs.

        Raises:
            ArchitectureError: it asks for another number itself.
        """
        given = self.options.get("num_classes", count)
        if given != count:
            raise ArchitectureError(
                f"--arch {self}: the data set has {count} classes, not {given}; leave num_classes out"
            )
        return self.with_options(num_classes=count)

    def build(self, *, device: str | torch.device = "cpu") -> nn.Module:
        """The network in eval mode, with fresh weights.

        Args:
            device: "meta" allocates none; the few networks that compute with values while they are built are then
                built on the CPU instead.

        Raises:
            ArchitectureError: the network is unknown, its library is missing, or it refuses the options.
        """
        self._check_options()
        factory = self._factory()
        try:
            with torch.device(device), _NoValuesOnMeta():
                model = factory(**self.options)
        except (Exception, SystemExit) as error:
            if torch.device(device).type == "meta" and isinstance(error, RuntimeError) and self.source != "own":
                return self.build()
            raise ArchitectureError(f"--arch {self}: the network could not be built: {_first_line(error)}") from error
        if not isinstance(model, nn.Module):
            raise ArchitectureError(
                f"--arch {self}: expected a torch.nn.Module, got {type(model).__name__}; "
                "let the function return the network itself"
            )
        return model.eval()

    def _check_options(self) -> None:
        """The package's own networks take positive whole numbers; no library may fetch or read weights."""
        known = inspect.signature(ARCHITECTURES[self.name]).parameters if self.source == "own" else None
        for key, value in self.options.items():
            if known is not None and key not in known:
                raise ArchitectureError(f"--arch {self}: unknown option {key!r}; {self.name} has {', '.join(known)}")
            if self.source == "own" and (type(value) is not int or value < 1):
                raise ArchitectureError(f"--arch {self}: {key}: expected a whole number from 1, got {value!r}")
            if self.source in ("torchvision", "timm") and key.startswith(("weights", "pretrained", "checkpoint")):
                raise ArchitectureError(f"--arch {self}: {key}: networks are built with fresh weights only")

    def _factory(self) -> Callable[..., Any]:
        if self.source == "own":
            return ARCHITECTURES[self.name]
        if self.source == "file":
            return _function_of_file(self)
        library = _library(self.source)
        if self.source == "timm":
            if not library.is_model(self.name):
                close = library.list_models(f"*{self.name[:6]}*")[:3]
                hint = f"; similar: {', '.join(close)}" if close else ""
                raise ArchitectureError(f"timm has no network {self.name!r}{hint}")
            return lambda **options: library.create_model(self.name, pretrained=False, **options)
        models = library.models
        if self.name not in models.list_models():
            raise ArchitectureError(f"torchvision has no network {self.name!r}; see torchvision.models.list_models()")
        defaults: dict[str, Any] = {"weights": None}
        if "weights_backbone" in inspect.signature(models.get_model_builder(self.name)).parameters:
            defaults["weights_backbone"] = None
        return lambda **options: models.get_model(self.name, **defaults, **options)


def parse_arch(text: str) -> Arch:
    """Read what stands behind `--arch`.

    Raises:
        ArchitectureError: the text has none of the known forms, or names no known network.
    """
    file_form = re.fullmatch(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)(?::(?P<options>.*))?", text)
    if file_form:
        return Arch("file", file_form["name"], _options(text, file_form["options"]), Path(file_form["file"]))
    head, _, rest = text.partition(":")
    if head in ("torchvision", "timm"):
        name, _, options = rest.partition(":")
        if not name:
            raise ArchitectureError(f"--arch {text!r}: expected {head}:NAME, for example {head}:resnet18")
        return Arch(head, name, _options(text, options))
    if head not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        hint = "; to run a file write path/to/file.py:function" if head.endswith(".py") else ""
        raise ArchitectureError(
            f"--arch {text!r}: unknown network {head!r}; expected one of {known}, torchvision:NAME, "
            f"timm:NAME or path/to/file.py:function{hint}"
        )
    return Arch("own", head, _options(text, rest))


class _NoValuesOnMeta(TorchFunctionMode):
    """Skips the initialisers that load torch's compiler, a second or more, to compute nothing on the meta device."""

    _FILLS = frozenset((Tensor.normal_, Tensor.erfinv_))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._FILLS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def _options(text: str, options: str | None) -> dict[str, Any]:
    try:
        return read_options(options or "")
    except SettingError as error:
        raise ArchitectureError(f"--arch {text!r}: {error}") from error


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ArchitectureError(
            f"--arch {name}:... needs {name}, which is not installed; pip install 'unbackdoor[zoo]'"
        ) from error


def _function_of_file(arch: Arch) -> Callable[..., Any]:
    assert arch.file is not None
    if not arch.file.is_file():
        raise ArchitectureError(f"--arch {arch}: there is no file {arch.file}")
    spec = importlib.util.spec_from_file_location(f"unbackdoor_user_{arch.file.stem}", arch.file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ArchitectureError(f"--arch {arch}: running {arch.file} failed: {_first_line(error)}") from error
    function = getattr(module, arch.name, None)
    if not callable(function):
        raise ArchitectureError(f"--arch {arch}: {arch.file} has no function {arch.name!r}")
    return function  # type: ignore[no-any-return]


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
