"""One process at a time, also behind one that was killed, and on file systems without locks."""

import errno
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from unbackdoor.errors import OutputError
from unbackdoor.lock import LOCK, claimed, is_claimed, locked

HOLD = """
import sys, time
from pathlib import Path
from unbackdoor.lock import claimed
with claimed(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_a_lock_is_one_processs_and_its_file_goes_with_it(tmp_path: Path) -> None:
    file = tmp_path / "k"
    assert not is_claimed(file)
    with claimed(file) as mine:
        assert mine
        assert is_claimed(file)
        with claimed(file, patience=0.03) as theirs:
            assert not theirs
        assert is_claimed(file)
    assert not is_claimed(file)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_let_go_of_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no luck"), claimed(tmp_path / "k"):
        raise ValueError("no luck")
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "k") as mine:
        assert mine


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    file = tmp_path / "k"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with claimed(file) as mine:
            assert not mine
        assert is_claimed(file)
        other.kill()
        other.wait()
    assert file.exists()
    assert not is_claimed(file)
    with claimed(file) as mine:
        assert mine
    assert not file.exists()


def test_a_folder_that_another_run_is_at_work_in(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()
        with pytest.raises(OutputError, match="another run is at work there; wait for it"), locked(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: cannot be written: "), locked(tmp_path / "file"):
        pass


@pytest.mark.parametrize("answer", [OSError(errno.ENOLCK, "No locks"), NotImplementedError()])
def test_where_the_file_system_knows_no_locks_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise answer

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with locked(tmp_path):
        pass
