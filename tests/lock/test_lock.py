"""One process at a time."""

import errno
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from unbackdoor.errors import OutputError
from unbackdoor.lock import claimed, is_claimed, locked

HOLD = (
    "import sys, pathlib, time; from unbackdoor.lock import claimed\n"
    "with claimed(pathlib.Path(sys.argv[1])) as mine: print(mine, flush=True); time.sleep(600)"
)


def test_one_holds_it_and_its_file_goes_with_it(tmp_path: Path) -> None:
    file = tmp_path / "k"
    with claimed(file) as mine:
        assert mine
        assert is_claimed(file)
        with claimed(file) as theirs:
            assert not theirs
        assert file.exists()
    assert not file.exists()
    assert not is_claimed(file)


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    file = tmp_path / "k"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        assert is_claimed(file)
        other.kill()
    assert file.exists()
    assert not is_claimed(file)
    with claimed(file) as mine:
        assert mine


def test_a_fault_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
    with (
        locked(tmp_path),
        pytest.raises(OutputError, match="another run is using this folder; wait until it ends"),
        locked(tmp_path),
    ):
        pass


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written: No such file"), locked(tmp_path / "no"):
        pass
    assert not is_claimed(tmp_path / "no" / "k")


@pytest.mark.parametrize("fault", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_a_file_system_without_locks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with locked(tmp_path), locked(tmp_path):
        pass
