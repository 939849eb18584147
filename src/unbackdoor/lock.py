"""One process at a time: a lock that the system lets go of when its process ends, however it ends."""

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

#: Seconds between two looks at a lock that another holds.
_POLL = 0.01

#: What a file system without locks answers.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def claimed(file: Path, *, patience: float = 0.0) -> Iterator[bool]:
    """Whether this process alone holds a lock file until the end of the block; the file is gone behind it.

    Where the file system knows no locks, everybody is alone.

    Args:
        file: of no other use; made here, in a folder that exists.
        patience: seconds to wait for another that holds it. Whoever only looks (`is_claimed`) holds it for a moment.

    Raises:
        OSError: the file cannot be made.
    """
    if not file.parent.is_dir():  # the library would make it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file.parent))
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=patience, poll_interval=_POLL)
    except Timeout:
        yield False
        return
    except NotImplementedError:  # what older versions of the library say of a file system without locks
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
    """Whether a process holds a lock file; one that was killed holds none, and the file that it left is removed."""
    if not file.exists():
        return False
    try:
        with claimed(file) as mine:
            return not mine
    except OSError:  # not to be written: whose it is cannot be known
        return False


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder.

    Raises:
        OutputError: another run is at work there, or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            mine = stack.enter_context(claimed(folder / LOCK))
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error
        if not mine:
            raise OutputError(f"{folder}: another run is at work there; wait for it, or choose another folder")
        yield
