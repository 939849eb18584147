"""Options that several commands share; those of the methods are made from the methods' own fields."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from unbackdoor.atomic import atomic_write
from unbackdoor.errors import SettingError
from unbackdoor.report.escape import visible
from unbackdoor.settings import Setting, settings_of, written

if TYPE_CHECKING:
    from unbackdoor.defences.base import DataFree
    from unbackdoor.findings import Report

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_METHOD = "lpp"
FORMATS = ("text", "json", "html", "sarif")

arch_option = click.option(
    "--arch",
    help="The network: resnet18:width=16, torchvision:resnet18, timm:resnet50, or path/to/file.py:function "
    "(runs that file). Without it, what the file says of itself, else names and order.",
)
key_option = click.option(
    "--key",
    help="Which part of a file to read, where it holds several networks: an entry (state_dict_ema), a way down through "
    "entries (model.state_dict), or what the names of its tensors begin with.",
)
input_option = click.option(
    "--input",
    "example",
    metavar="SIZES",
    callback=lambda _context, _option, text: None if text is None else _parse_input(text),
    help="What the network takes, where its layers cannot be read without: sizes without the batch, as 3x32x32; "
    "several inputs separated by commas, and :int or :bool behind those that are no floating-point numbers, as "
    "3x224x224,10:int.",
)
part_option = click.option(
    "--output",
    "part",
    metavar="KEY",
    help="Which part of what the network returns is its logits, where that is a dict, a tuple or a dataclass: a key, a "
    "number from 0, or a field's name.",
)
download_option = click.option(
    "--download", is_flag=True, help="Fetch the data set where it is missing (needs a network, and torchvision)."
)
quiet_option = click.option("--quiet", is_flag=True, help="Nothing on stderr but errors.")
force_option = click.option("--force", is_flag=True, help="Replace an output that exists.")
csv_option = click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path),
    help="Write the rates as BackdoorBench does: test_acc,test_asr,test_ra, shares of 1.",
)
format_option = click.option(
    "--format", "form", type=click.Choice(FORMATS), default="text", show_default=True, help="Of the report."
)


def method_options(function: F) -> F:
    """Add `--method` and one option for every field of every data-free method."""
    methods = _methods()
    owners: dict[str, list[type[DataFree]]] = {}
    for kind in methods.values():
        for name in settings_of(kind):
            owners.setdefault(name, []).append(kind)
    for name, kinds in reversed(owners.items()):
        about = settings_of(kinds[0])[name]
        defaults = ", ".join(f"{kind.name} {_brief(getattr(kind, name))}" for kind in kinds)
        function = click.option(
            "--" + name.replace("_", "-"),
            name,
            type=_click_type(about),
            default=None,
            help=f"{about.meaning[:1].upper()}{about.meaning[1:]}. [{defaults}]",
        )(function)
    return click.option(
        "--method",
        type=click.Choice(list(methods)),
        default=DEFAULT_METHOD,
        show_default=True,
        help="How to score and cut.",
    )(function)


def build_method(name: str, values: dict[str, Any]) -> DataFree:
    """The method with the options that were given; an option of another method is an error."""
    cls = _methods()[name]
    given = {key: value for key, value in values.items() if value is not None}
    known = settings_of(cls)
    for key in given:
        if key not in known:
            raise SettingError(f"--{key.replace('_', '-')} is no setting of --method {name}; it has {_flags(known)}")
    return cls(**given)


def part_and_file(part: str | None, file: Path | None) -> tuple[str | None, Path | None]:
    """What `--output` and `-o` mean where both are options: a word that can only be a file's name is one behind either.

    Args:
        part: given behind `--output`: a part of what the network returns; a file in older command lines.
        file: given behind `-o`.

    Raises:
        SettingError: two files were given.
    """
    if part is None or not is_file_name(part):
        return part, file
    if file is not None:
        raise SettingError(f"-o {file} and --output {part}: expected one file; --output names a part of an answer")
    return None, Path(part)


def is_file_name(text: str) -> bool:
    """Whether a word behind `--output` is a path or has a suffix, which no key of an answer has."""
    return "/" in text or "\\" in text or bool(Path(text).suffix)


def announce(arch: str | None, *, quiet: bool = False) -> None:
    """Say so, before a file that the user named is run."""
    from unbackdoor.models import parse_arch

    network = None if arch is None else parse_arch(arch)
    if network is not None and network.runs_code and Path(str(network.file)).is_file() and not quiet:
        click.echo(f"running {visible(str(network.file))} (--arch)", err=True)


def emit(text: str, output: Path | None, *, overwrite: bool) -> None:
    """Print a report, or write it to a file, whole or not at all."""
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    with atomic_write(output, overwrite=overwrite) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))


def say_written(output: Path | None, report: Report) -> None:
    """That the repaired file is there, and of what kind the repair was."""
    rest = "; no channel of it was repaired, the classifier alone was edited" if report.only_classifier else ""
    click.echo(f"{visible(str(output))}: written and read back{rest}", err=True)


def _parse_input(text: str) -> Any:
    from unbackdoor.inputs import parse_example

    return parse_example(text)


def _methods() -> dict[str, type[DataFree]]:
    from unbackdoor.defences import data_free  # noqa: F401 (registers the methods)
    from unbackdoor.defences.base import DEFENCES, DataFree

    kinds = {name: DEFENCES[name] for name in sorted(DEFENCES, key=lambda name: name != DEFAULT_METHOD)}
    return {name: kind for name, kind in kinds.items() if issubclass(kind, DataFree)}


def _click_type(about: Setting) -> Any:
    return click.Choice(typing.cast(tuple[str, ...], about.choices)) if about.kind is str else about.kind


def _brief(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else written(value)


def _flags(names: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in sorted(names))
