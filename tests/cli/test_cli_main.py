"""The entry point: one line on stderr and exit code 2, whatever goes wrong; never a traceback without --debug."""

import os
import subprocess
import sys

import click
import pytest

from unbackdoor import cli
from unbackdoor.errors import DataError


def _main(*words: str) -> int:
    """Run the command line in this process and return its exit code."""
    argv, sys.argv = sys.argv, ["unbackdoor", *words]
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main()
    finally:
        sys.argv = argv
    return int(caught.value.code or 0)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Replaces `unbackdoor demo` by a command that raises what it is given."""

    def install(error: BaseException) -> None:
        @click.command()
        @click.argument("words", nargs=-1)
        def command(words: tuple[str, ...]) -> None:
            raise error

        monkeypatch.setattr(cli.Lazy, "get_command", lambda *_: command)

    return install


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("expected this\ngot  that"), "unbackdoor: expected this got that\n"),
        (DataError("red \x1b[31m bell \x07 \u202e"), "unbackdoor: red \\x1b[31m bell \\x07 \\u202e\n"),
        (FileNotFoundError(2, "No such file", "x.pt"), "unbackdoor: x.pt: No such file\n"),
        (MemoryError(), "unbackdoor: out of memory; nothing was written\n"),
        (
            ZeroDivisionError("by zero"),
            "unbackdoor: internal error: ZeroDivisionError: by zero; "
            "run again with --debug for the traceback, and report it\n",
        ),
    ],
)
def test_an_error_is_one_line(failing, capsys: pytest.CaptureFixture, error: Exception, line: str) -> None:
    failing(error)
    assert _main("demo") == 2
    assert capsys.readouterr() == ("", line)


def test_ctrl_c(failing, capsys: pytest.CaptureFixture) -> None:
    failing(KeyboardInterrupt())
    assert _main("demo") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "unbackdoor: stopped"


@pytest.mark.parametrize("words", [["--debug", "demo"], ["demo", "--debug"], ["demo", "x", "--debug", "--", "y"]])
def test_debug_anywhere_shows_the_traceback(failing, words: list[str]) -> None:
    failing(DataError("expected this"))
    sys_argv, sys.argv = sys.argv, ["unbackdoor", *words]
    try:
        with pytest.raises(DataError):
            cli.main()
    finally:
        sys.argv = sys_argv


def test_behind_two_dashes_debug_is_a_word_like_others(failing, capsys: pytest.CaptureFixture) -> None:
    failing(DataError("expected this"))
    assert _main("demo", "--", "--debug") == 2
    assert capsys.readouterr().err == "unbackdoor: expected this\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["--nothing"], "No such option"),
        (["--debug=3"], "--debug"),
        (["demo\n--help"], "No such command"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture, words: list[str], message: str) -> None:
    assert _main(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--version"], ["train", "--help"]])
def test_asking_for_help_is_no_error(capsys: pytest.CaptureFixture, words: list[str]) -> None:
    assert _main(*words) == 0
    out, err = capsys.readouterr()
    assert out
    assert err == ""


def test_help_lists_every_command(capsys: pytest.CaptureFixture) -> None:
    _main("--help")
    out = capsys.readouterr().out
    assert [name for name in cli.COMMANDS if f"\n  {name} " not in out] == []


def test_no_words_show_the_help_and_are_an_error(capsys: pytest.CaptureFixture) -> None:
    assert _main() == 2
    assert "Usage" in capsys.readouterr().err


def test_help_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys, unbackdoor.cli as c; c.cli.main(['--help'], standalone_mode=False); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
def test_a_reader_that_went_away_is_never_exit_code_0_or_1() -> None:
    """`unbackdoor ... | head`: click itself would leave with 1, which means findings."""
    read, write = os.pipe()
    os.close(read)
    code = "import sys; sys.argv[1:] = ['train', '--help']; from unbackdoor.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
