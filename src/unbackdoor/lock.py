"""Locks between processes; the system releases a lock when its process ends, even if it is killed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from unbackdoor.errors import OutputError

#: The file in a folder that `locked` holds.
LOCK = ".lock"

#: Seconds between two attempts to take a lock that another process holds.
_POLL = 0.01

#: Error codes of a file system without locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def claimed(file: Path, *, patience: float = 0.0) -> Iterator[bool]:
    """Try to hold a lock file until the end of the block, and yield whether that worked; the file is then removed.

    On a file system without locks it always works.

    Args:
        file: used for nothing else; it is made here, in a folder that exists.
        patience: seconds to wait for a process that holds it. `is_claimed` holds it for a moment, too.

    Raises:
        OSError: the file cannot be made.
    """
    if not file.parent.is_dir():  # filelock would create it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file.parent))
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=patience, poll_interval=_POLL)
    except Timeout:
        yield False
        return
    except NotImplementedError:  # older versions of filelock, on a file system without locks
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):  # Windows removes no file that is open
            file.unlink()
        lock.release()


def is_claimed(file: Path) -> bool:
    """Whether a process holds a lock file. A file that a killed process left is removed."""
    if not file.exists():
        return False
    try:
        with claimed(file) as mine:
            return not mine
    except OSError:  # the file cannot be opened, so its holder is unknown
        return False


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock until the end of the block.

    Raises:
        OutputError: another run holds it, or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            mine = stack.enter_context(claimed(folder / LOCK))
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error
        if not mine:
            raise OutputError(
                f"{folder}: another run is using this folder; wait until it ends, or choose another folder"
            )
        yield
