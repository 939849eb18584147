"""Options that several commands share; those of the methods are made from the methods' own fields."""

from __future__ import annotations

import importlib
import math
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
    from unbackdoor.defences.base import Defence
    from unbackdoor.findings import Report

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_METHOD = "lpp"
FORMATS = ("text", "json", "html", "sarif")

arch_option = click.option(
    "--arch",
    help="The network: resnet18:width=16, torchvision:resnet18, timm:resnet50, or path/to/file.py:function "
    "(runs that file). Default: the network that the file names; else layers are paired by names and order.",
)
key_option = click.option(
    "--key",
    help="Which network to read from a file that holds several: an entry (state_dict_ema), a path through entries "
    "(model.state_dict), or a prefix of tensor names.",
)
input_option = click.option(
    "--input",
    "example",
    metavar="SIZES",
    callback=lambda _context, _option, text: None if text is None else _parse_input(text),
    help="Sizes of the network's inputs, without the batch, if its layers cannot be read otherwise, or if a method "
    "makes images of its own: 3x32x32. Separate "
    "several inputs by commas, and add :int or :bool to those that are not floating point: 3x224x224,10:int.",
)
mean_option = click.option(
    "--mean",
    metavar="NUMBERS",
    callback=lambda _context, _option, text: None if text is None else _parse_numbers("mean", text),
    help="Mean that the network's images are normalised by, one number or one a channel, for pixels from 0 to 1: "
    "0.485,0.456,0.406. Default: the data set's; without one, estimated from the network.",
)
std_option = click.option(
    "--std",
    metavar="NUMBERS",
    callback=lambda _context, _option, text: None if text is None else _parse_numbers("std", text),
    help="Deviation that they are divided by, beside --mean: 0.229,0.224,0.225.",
)
part_option = click.option(
    "--output",
    "part",
    metavar="KEY",
    help="Which part of the network's output is its logits, if it returns a dict, a tuple or a dataclass: a key, a "
    "number from 0, or a field's name.",
)
download_option = click.option(
    "--download",
    is_flag=True,
    help="Fetch the data set if it is missing (needs an internet connection and torchvision).",
)
quiet_option = click.option("--quiet", is_flag=True, help="Print only errors on stderr.")
force_option = click.option("--force", is_flag=True, help="Replace an output that already exists.")
overrule_option = click.option(
    "--force", is_flag=True, help="Replace an output that already exists, and write whatever loss is predicted."
)
max_damage_option = click.option(
    "--max-damage",
    metavar="POINTS",
    default="3",
    show_default=True,
    callback=lambda _context, _option, text: _parse_limit(text),
    help="Write nothing if the repair is predicted, from generated images, to cost more points of accuracy; "
    "none predicts nothing, which is faster. Not predicted where the network or its images' size is not known.",
)
csv_option = click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path),
    help="Write the rates in BackdoorBench's form: test_acc,test_asr,test_ra, as shares of 1.",
)
format_option = click.option(
    "--format", "form", type=click.Choice(FORMATS), default="text", show_default=True, help="Form of the report."
)


class Listing(click.Option):
    """An option whose help lists the names in a registry, which is only read when help is shown.

    Args:
        names: returns the names, which replace NAMES in the help.
    """

    def __init__(self, *arguments: Any, names: Callable[[], Iterable[str]], **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._names = names

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option's line in the help."""
        self.help = (self.help or "").replace("NAMES", ", ".join(self._names()))
        return super().get_help_record(ctx)


def registered(module: str, table: str) -> Iterable[str]:
    """The names in a table of this package, whose module is imported only now."""
    found: Iterable[str] = getattr(importlib.import_module(f"unbackdoor.{module}"), table)
    return found


def method_options(function: F) -> F:
    """Add `--method` and one option for every field of every data-free method."""
    methods = _methods()
    owners: dict[str, list[type[Defence]]] = {}
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
        help="By outlier channels (lpp, clp), or a repair that looks first (the others; docs/repairs.md).",
    )(function)


def build_method(name: str, values: dict[str, Any]) -> Defence:
    """Make the method from its options; an option of another method is an error."""
    cls = _methods()[name]
    given = {key: value for key, value in values.items() if value is not None}
    known = settings_of(cls)
    for key in given:
        if key not in known:
            raise SettingError(f"--{key.replace('_', '-')} is not a setting of --method {name}; it has {_flags(known)}")
    return cls(**given)


def part_and_file(part: str | None, file: Path | None) -> tuple[str | None, Path | None]:
    """The part and the file that `--output` and `-o` name; a file's name is accepted after either.

    Args:
        part: the value of `--output`: a part of the network's output, or a file in older command lines.
        file: the value of `-o`.

    Raises:
        SettingError: two files were given.
    """
    if part is None or not is_file_name(part):
        return part, file
    if file is not None:
        raise SettingError(
            f"-o {file} and --output {part}: expected one file; --output names a part of the network's output"
        )
    return None, Path(part)


def is_file_name(text: str) -> bool:
    """Whether a value of `--output` is a path or has a suffix, as no part of an output does."""
    return "/" in text or "\\" in text or bool(Path(text).suffix)


def announce(arch: str | None, *, quiet: bool = False) -> None:
    """Tell the user, before a Python file given with `--arch` is run."""
    from unbackdoor.models import parse_arch

    network = None if arch is None else parse_arch(arch)
    if network is not None and network.runs_code and Path(str(network.file)).is_file() and not quiet:
        click.echo(f"running {visible(str(network.file))} (--arch)", err=True)


def emit(text: str, output: Path | None, *, overwrite: bool) -> None:
    """Print a report, or write it to a file."""
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    with atomic_write(output, overwrite=overwrite) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))


def say_written(output: Path | None, report: Report) -> None:
    """Tell the user that the repaired file was written, and if only its classifier was edited."""
    rest = "; no channel of it was repaired, the classifier alone was edited" if report.only_classifier else ""
    click.echo(f"{visible(str(output))}: written and read back{rest}", err=True)


def _parse_input(text: str) -> Any:
    from unbackdoor.inputs import parse_example

    return parse_example(text)


def _parse_limit(text: str) -> float | None:
    if text == "none":
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not limit >= 0:
        raise SettingError(f"--max-damage: expected points of accuracy from 0, or none, got {text!r}")
    return limit


def _parse_numbers(option: str, text: str) -> tuple[float, ...]:
    from unbackdoor.inputs import parse_numbers

    return parse_numbers(option, text)


def _methods() -> dict[str, type[Defence]]:
    from unbackdoor.defences import data_free  # noqa: F401 (registers the methods)
    from unbackdoor.defences.base import DEFENCES

    kinds = {name: DEFENCES[name] for name in sorted(DEFENCES, key=lambda name: name != DEFAULT_METHOD)}
    return {name: kind for name, kind in kinds.items() if kind.needs == "nothing"}


def _click_type(about: Setting) -> Any:
    return click.Choice(typing.cast(tuple[str, ...], about.choices)) if about.kind is str else about.kind


def _brief(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else written(value)


def _flags(names: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in sorted(names))
