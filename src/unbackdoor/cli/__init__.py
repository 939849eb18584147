"""The command `unbackdoor`: one small file per command, each loaded only when it is called."""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import sys
import warnings

import click

from unbackdoor.errors import UnbackdoorError

COMMANDS = {
    "demo": "repair a backdoored network that comes with the package, and write a report page",
    "scan": "list the outlier channels, layer by layer; changes nothing",
    "repair": "prune and shrink the outlier channels, with no data",
    "inspect": "show tensors and layers, and which norm follows which layer",
    "diff": "list the channels that differ between two files",
    "evaluate": "measure accuracy on a test set, and with an attack its success rate",
    "train": "train a network, clean or backdoored",
    "bench": "run a grid of attacks, defences, data sets and seeds; show its status; report on it",
    "detect": "look for a backdoor with images: Activation Clustering, Neural Cleanse",
    "defend": "repair a network by any method, with or without clean images",
}


class Lazy(click.Group):
    """A group that lists all commands, and imports a command only when it is used."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"unbackdoor.cli.{name}").command
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="unbackdoor")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(*, debug: bool) -> None:
    """Find and repair backdoored neural networks, with no data."""


def main() -> None:
    """Entry point: an error is one line on stderr and exit code 2, never a traceback without --debug."""
    # torch and long reports make many objects and little garbage; looking for it is a third of a short command's time.
    gc.set_threshold(20_000)
    atexit.register(gc.freeze)
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    if debug:  # accepted anywhere among the options
        sys.argv[1:] = ["--debug", *(word for word in words[:end] if word != "--debug"), *words[end:]]
    stdout = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to fail
    quiet = "--quiet" in words[:end]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: None if quiet else say(f"warning: {message}")
            code = cli.main(prog_name="unbackdoor", standalone_mode=False)  # also behind `python -m unbackdoor`
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = 2
    except click.UsageError as error:
        say(error.format_message() + _where(error))
        code = 2
    except click.Abort:
        say("stopped")
        code = 130
    except UnbackdoorError as error:
        if debug:
            raise
        say(str(error))
        code = 2
    except SystemExit as error:
        # When its reader went away click replaces stdout and leaves with 1, which would mean "findings".
        code = error.code if sys.stdout is stdout else 2
    except MemoryError:
        say("out of memory; nothing was written")
        code = 2
    except OSError as error:
        if debug:
            raise
        say(f"{error.filename or 'the system'}: {error.strerror or error}")
        code = 2
    except Exception as error:
        if debug:
            raise
        say(f"internal error: {type(error).__name__}: {error}; run again with --debug for the traceback, and report it")
        code = 2
    sys.exit(code or 0)


def _where(error: click.UsageError) -> str:
    return f" (see {error.ctx.command_path} --help)" if error.ctx else ""


def say(message: str) -> None:
    """Print one line on stderr, with control characters escaped."""
    line = " ".join(message.split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    click.echo("unbackdoor: " + shown, err=True)
