"""Runs of the command line in this process, and what every refusal has in common."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from unbackdoor import cli

#: The packaged network: bfloat16, backdoored, and named in its own metadata.
PACKAGED = Path(str(resources.files("unbackdoor.demo") / "model.safetensors"))


@dataclass(frozen=True)
class Run:
    """What a command left behind."""

    code: int
    out: str
    err: str


def run(*words: object) -> Run:
    """Run `unbackdoor WORDS...`."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["unbackdoor", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.argv = argv
    return Run(code, out.getvalue(), err.getvalue())


def refuse(*words: object) -> str:
    """Run what must be refused: exit code 2, nothing on stdout, and one line on stderr, which is returned."""
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("unbackdoor: ")
    assert "internal error" not in line
    return line
