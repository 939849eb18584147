"""The command as a process of its own: pipes, terminals, folders and names as people have them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from cli_runs import PACKAGED, refuse, run
from unbackdoor import checkpoint

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX pipes and devices")
#: The installed command, where the package is installed beside this interpreter.
SCRIPT = Path(sys.executable).with_name("unbackdoor")
COMMAND = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-c", "from unbackdoor.cli import main; main()"]


def _start(*words: object, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, **options)


def test_from_another_folder_with_spaces_and_other_alphabets(tmp_path: Path) -> None:
    folder = tmp_path / "mein Ordner ✓"
    folder.mkdir()
    shutil.copy(PACKAGED, folder / "模型 é.safetensors")
    environment = {**os.environ, "NO_COLOR": "1"}
    done = _start("repair", "模型 é.safetensors", "-o", "ausgabe ü.pt", cwd=folder, env=environment)
    assert (done.returncode, done.stderr) == (0, "ausgabe ü.pt: written and read back\n")
    assert "unbackdoor repair: 模型 é.safetensors" in done.stdout
    assert "\x1b" not in done.stdout
    assert (folder / "ausgabe ü.pt").exists()


def test_a_terminal_that_cannot_show_a_name_is_no_reason_to_fail(tmp_path: Path) -> None:
    shutil.copy(PACKAGED, tmp_path / "模型.safetensors")
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = _start("scan", "模型.safetensors", cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (1, "")
    assert "unbackdoor scan: \\u6a21\\u578b.safetensors" in done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import unbackdoor, unbackdoor.findings, unbackdoor.report, unbackdoor.cli",
        "from unbackdoor.findings import Report; Report(action='scan', method='lpp', settings={}).to_text()",
        f"import unbackdoor; unbackdoor.scan({str(PACKAGED)!r}).to_text()",
    ],
    ids=["start", "text", "scan"],
)
def test_only_a_page_costs_the_template_engine(code: str) -> None:
    words = [sys.executable, "-c", f"{code}; import sys; print([m for m in sys.modules if m.startswith('jinja2')])"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_a_name_that_is_no_text(tiny_net: Callable[..., nn.Module], tmp_path: Path) -> None:
    """safetensors' own reader wants UTF-8; a torch file may be called anything."""
    source, output = tmp_path / os.fsdecode(b"\xff\n.pt"), tmp_path / os.fsdecode(b"\xfe\x1b.pt")
    checkpoint.save(source, tiny_net().state_dict())
    done = run("repair", source, "-o", output, "--format", "json")
    assert done.code == 0
    assert (json.loads(done.out)["source"], json.loads(done.out)["output"]) == (str(source), str(output))
    assert done.err == f"{tmp_path}/\\udcfe\\x1b.pt: written and read back\n"
    done = run("scan", source)
    assert (done.code, done.err) == (0, "")
    assert "\\udcff\\x0a.pt" in done.out
    (tmp_path / os.fsdecode(b"\xff.safetensors")).write_bytes(PACKAGED.read_bytes())
    assert "\\udcff.safetensors: not a readable" in refuse("scan", tmp_path / os.fsdecode(b"\xff.safetensors"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_report_that_finds_no_room_is_never_exit_code_0_or_1() -> None:
    with open("/dev/full", "wb") as stdout:
        done = subprocess.run([*COMMAND, "scan", PACKAGED], stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "unbackdoor: the system: No space left on device\n"


@POSIX
def test_a_reader_of_one_line(tmp_path: Path) -> None:
    """`| head -1`: the pipe holds the rest, or the command is told; a crash is never taken for a result."""
    words = [*COMMAND, "scan", *[str(PACKAGED)] * 3, "--format", "json"]
    # Without its buffer Python takes half a write for a whole one, and nobody is told.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"{\n"
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 2  # the reports are larger than a pipe
    assert b"Traceback" not in error


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = _start("scan", "missing.pt", "--debug", cwd=tmp_path)
    assert done.returncode not in (0, 3)
    assert "Traceback" in done.stderr
    assert "CheckpointError: missing.pt: the file does not exist" in done.stderr
