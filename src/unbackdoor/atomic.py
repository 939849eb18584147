"""Write a file atomically: it appears complete under its name, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from unbackdoor.errors import OutputError


@contextlib.contextmanager
def atomic_write(path: str | Path, *, overwrite: bool, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary stream whose content appears under `path` when the block ends without an exception.

    The bytes go to a new file in the same folder, are flushed to the disk, and the file is then renamed. A symbolic
    link is followed, so that the link stays and its target is replaced; the permissions are those of the replaced file,
    else the umask's.

    Args:
        path: the final name.
        overwrite: whether a file of that name may be replaced.
        durable: whether to wait until the disk has it. Without, a killed process still leaves the complete file or
            none, but a power failure may leave an empty one; only for files whose reader checks them.

    Raises:
        OutputError: the file exists and may not be replaced, is no regular file, or cannot be written.
    """
    final = check_target(path, overwrite=overwrite)
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(6)}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}: {final.parent}") from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            if final.exists():
                os.fchmod(stream.fileno(), stat.S_IMODE(final.stat().st_mode))
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        if overwrite:
            os.replace(temporary, final)
        else:
            _rename_new(temporary, final)
        if durable:
            _sync_folder(final.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    except RuntimeError as error:  # torch.save hides the system's error behind one of its own
        if not isinstance(error.__context__, OSError):
            raise
        raise OutputError(f"{path}: cannot be written: {error.__context__.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def check_target(path: str | Path, *, overwrite: bool, inputs: Iterable[str | Path] = ()) -> Path:
    """Check that a file can be written; returns its path with symbolic links resolved.

    Args:
        path: the name.
        overwrite: whether a file of that name may be replaced.
        inputs: files that must not be overwritten, whatever name they are given by.

    Raises:
        OutputError: the file exists and may not be replaced, is an input or not a regular file, or has no folder.
    """
    final = Path(os.path.realpath(path))
    there = os.path.exists(final)  # unlike Path.exists, never an OSError
    if there and any(os.path.exists(one) and os.path.samefile(one, final) for one in inputs):
        raise OutputError(f"{path}: is the input file, which is never modified; choose another name")
    if there and not final.is_file():
        what = "folder" if final.is_dir() else "device or a pipe"
        raise OutputError(f"{path}: expected a file name, got a {what}")
    if there and not overwrite:
        raise OutputError(f"{path}: already exists and was not changed; use --force (overwrite=True) to replace it")
    if not final.parent.is_dir():
        raise OutputError(f"{path}: cannot be written: there is no folder {final.parent}")
    return final


def _rename_new(temporary: Path, final: Path) -> None:
    """Rename, but never replace a file that another program created in the meantime."""
    try:
        os.link(temporary, final)
    except FileExistsError as error:
        raise OutputError(f"{final}: was created by another program in the meantime, and was not replaced") from error
    except OSError:  # a file system without hard links
        os.replace(temporary, final)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
