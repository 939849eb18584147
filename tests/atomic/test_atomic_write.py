"""A file appears whole under its name, or not at all."""

import multiprocessing
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from unbackdoor import checkpoint
from unbackdoor.atomic import atomic_write
from unbackdoor.errors import OutputError

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions, links or signals")


def _write(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    with atomic_write(path, overwrite=overwrite) as stream:
        stream.write(content)


def test_a_new_file(tmp_path: Path) -> None:
    _write(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


def test_an_existing_file_is_left_as_it_is(tmp_path: Path) -> None:
    _write(tmp_path / "a", b"old")
    with pytest.raises(OutputError, match="already exists and was not changed; use --force"):
        _write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    _write(tmp_path / "a", b"new", overwrite=True)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    _write(tmp_path / "a", b"old")
    with atomic_write(tmp_path / "a", overwrite=True) as stream:
        stream.write(b"new")
        stream.flush()
        assert (tmp_path / "a").read_bytes() == b"old"
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, RuntimeError])
def test_an_exception_leaves_the_old_file_and_no_part(tmp_path: Path, error: type[BaseException]) -> None:
    _write(tmp_path / "a", b"old")
    with pytest.raises(error), atomic_write(tmp_path / "a", overwrite=True) as stream:
        stream.write(b"half")
        raise error("stopped here")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


def test_a_file_that_appears_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    appeared = pytest.raises(OutputError, match="was created by another program in the meantime")
    with appeared, atomic_write(tmp_path / "a", overwrite=False) as stream:
        stream.write(b"ours")
        (tmp_path / "a").write_bytes(b"theirs")
    assert (tmp_path / "a").read_bytes() == b"theirs"
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


@POSIX
def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    _write(tmp_path / "folder" / "real", b"old")
    (tmp_path / "link").symlink_to("folder/real")
    with pytest.raises(OutputError, match="already exists"):
        _write(tmp_path / "link", b"new")
    _write(tmp_path / "link", b"new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "real").read_bytes() == b"new"


@POSIX
def test_a_link_to_nothing_makes_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    _write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@POSIX
def test_permissions(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        _write(tmp_path / "new", b"")
        _write(tmp_path / "kept", b"")
        (tmp_path / "kept").chmod(0o604)
        _write(tmp_path / "kept", b"again", overwrite=True)
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "kept")]
    assert [oct(mode) for mode in modes] == ["0o640", "0o604"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_no_file(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(OutputError, match="expected a file name, got a folder"):
        _write(tmp_path, b"", overwrite=overwrite)
    with pytest.raises(OutputError, match="expected a file name, got a folder"):
        _write(Path(""), b"", overwrite=overwrite)


@POSIX
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path, overwrite: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="got a device or a pipe"):
        _write(tmp_path / "pipe", b"", overwrite=overwrite)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("name", ["missing/a", "file/a", "x" * 300])
def test_a_place_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        _write(tmp_path / name, b"")


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that the process, which is no longer root, may read but not write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "old").write_bytes(b"old")
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


@POSIX
@pytest.mark.parametrize("name", ["new", "old"])
def test_a_read_only_folder(as_nobody: Path, name: str) -> None:
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        _write(as_nobody / name, b"new", overwrite=True)
    assert [f.name for f in as_nobody.iterdir()] == ["old"]
    assert (as_nobody / "old").read_bytes() == b"old"


def _write_for_ever(path: Path) -> None:
    for i in range(10**9):
        _write(path, bytes([i % 256]) * 300_000, overwrite=True)


@POSIX
def test_kill_9_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    _write(path, b"\0" * 300_000)
    seen = set()
    for i in range(12):
        child = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,))
        child.start()
        time.sleep(0.02 + 0.007 * i)
        child.kill()
        child.join()
        content = path.read_bytes()
        assert len(content) == 300_000
        assert len(set(content)) == 1
        seen.add(content[0])
    assert len(seen) > 3  # the children did write


FULL_DISK = """
import resource, signal, sys, torch
from unbackdoor import checkpoint
from unbackdoor.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    checkpoint.save(sys.argv[1], {"w": torch.ones(100_000)}, overwrite=True)
except OutputError as error:
    print(error)
"""


@POSIX
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_no_room_for_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: cannot be written: File too large\n"
    assert path.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == [path.name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, where one may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system may not be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_full_disk(small_disk: Path, suffix: str) -> None:
    path = small_disk / f"m.{suffix}"
    checkpoint.save(path, {"w": torch.ones(10)})
    old = path.read_bytes()
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        checkpoint.save(path, {"w": torch.ones(100_000)}, overwrite=True)
    assert path.read_bytes() == old
    assert [f.name for f in small_disk.iterdir()] == [path.name]
