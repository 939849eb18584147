"""Results on disk: one immutable JSON record per cell, and for a training its network.

    ROOT/data/NAME.json            digest of the data set when it was first used
    ROOT/training/KEY/             model.safetensors, attack.json, attack.safetensors, log.jsonl, record.json
    ROOT/repair/KEY.json           a repair's record; correlation/ and probe/ likewise
    ROOT/failed/KEY.json           why a cell failed
    ROOT/damaged/                  records that were truncated or altered
    ROOT/work/                     unfinished work; locks/ of running cells

A record holds its own SHA-256, and those of its files. A truncated or altered record is found, moved to damaged/, and
its cell run again, so that no write has to wait for the disk. Records are written atomically.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unbackdoor.atomic import atomic_write
from unbackdoor.errors import DataError, OutputError
from unbackdoor.experiments.cell import VERSIONS, Cell, canonical
from unbackdoor.lock import claimed, is_claimed

Record = dict[str, Any]

RECORD = "record.json"
#: The bytes before and after a record's JSON.
_HEAD, _TAIL, _NO_DIGEST = b'{"record":', b',"sha256":"%b"}\n', b"0" * 64
#: Free disk space, in bytes, that is needed to begin a cell.
SPACE = 64 * 2**20
#: Kinds of cells that have files besides the record.
FOLDERS = ("training",)


class Store:
    """Results on disk; several processes may share one.

    Args:
        root: its folder.
        make: whether to make the folder if it is missing.

    Raises:
        DataError: the folder is missing, and `make` is false.
        OutputError: it cannot be made or written.
    """

    def __init__(self, root: str | Path, *, make: bool = True) -> None:
        self.root = Path(root)
        if not make:
            if not (self.root / "data").is_dir():
                raise DataError(f"{self.root}: expected a store that `unbackdoor bench run --store` made")
            return
        try:
            for name in ("data", "failed", "damaged", "work", "locks", *VERSIONS):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.root}: a store cannot be made here: {error.strerror or error}") from error

    @classmethod
    def empty(cls, root: str | Path) -> Store:
        """An empty store, for reading only; no folder is made."""
        store = cls.__new__(cls)
        store.root = Path(root)
        return store

    # Reading

    def path(self, cell: Cell, key: str) -> Path:
        """The path of a cell's record, which may not exist."""
        if cell.kind in FOLDERS:
            return Path(f"{self.root}/{cell.kind}/{key}/{RECORD}")
        return Path(f"{self.root}/{cell.kind}/{key}.json")

    def read(self, cell: Cell, key: str, *, look: bool = False) -> Record | None:
        """A finished cell's record; None if there is none, or if it was damaged and moved away.

        Args:
            cell, key: the cell and its key.
            look: only read the record: do not check its files, and do not move a damaged one.
        """
        path = self.path(cell, key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        record = unsealed(content)
        if record is not None and record.get("key") == key and (look or self._whole(path, record)):
            return record
        if not look:
            self._set_aside(cell, path)
        return None

    def has(self, cell: Cell, key: str) -> bool:
        """Whether a record exists, without reading it."""
        return self.path(cell, key).exists()

    def failure(self, key: str) -> Record | None:
        """The record of a cell's failure, if it failed."""
        try:
            return unsealed((self.root / "failed" / f"{key}.json").read_bytes())
        except FileNotFoundError:
            return None

    def outcomes(
        self, cells: Iterable[Cell], digests: Mapping[str, str] | None = None
    ) -> Iterator[tuple[Cell, str | None, Record | None, Record | None]]:
        """Each cell with its key, its record if it is done, and its failure if it failed; nothing is changed.

        The key is None if the digest of the cell's data set is neither stored here nor in `digests`.
        """
        digests = {**(digests or {}), **self.digests()}
        for cell in cells:
            if cell.data_name is not None and cell.data_name not in digests:
                yield cell, None, None, None
                continue
            key = cell.key(digests)
            record = self.read(cell, key, look=True)
            yield cell, key, record, self.failure(key) if record is None else None

    def folder(self, cell: Cell, key: str) -> Path:
        """The folder of a training's files."""
        return self.path(cell, key).parent

    def digests(self) -> dict[str, str]:
        """Name of each data set used here -> digest of its content."""
        found = {}
        for path in sorted((self.root / "data").glob("*.json")):
            record = unsealed(path.read_bytes())
            if record is not None:
                found[record["name"]] = record["digest"]
        return found

    # Writing

    def check_data(self, name: str, digest: str) -> None:
        """Store a data set's digest, or compare it with the one stored before.

        Raises:
            DataError: the digests differ.
        """
        known = self.digests().get(name)
        if known is None:
            path = self.root / "data" / f"{name.replace(os.sep, '_')}.json"
            with atomic_write(path, overwrite=True, durable=False) as stream:
                stream.write(sealed({"name": name, "digest": digest}))
        elif known != digest:
            raise DataError(
                f"{self.root}: holds results on another version of {name!r} (digest {known[:12]}, this one has "
                f"{digest[:12]}); use another store, or the data set that this one was started with"
            )

    def put(self, cell: Cell, key: str, record: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Store a finished cell; the record is written last.

        Args:
            record: the record, to which the key and the digests of the files are added.
            files: name -> content of the cell's files.
        """
        path = self.path(cell, key)
        full = {
            **record,
            "key": key,
            "files": {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)},
        }
        if cell.kind in FOLDERS:
            path.parent.mkdir(exist_ok=True)
        for name, content in files.items():
            with atomic_write(path.parent / name, overwrite=True, durable=False) as stream:
                stream.write(content)
        with atomic_write(path, overwrite=True, durable=False) as stream:
            stream.write(sealed(full))
        with contextlib.suppress(FileNotFoundError):
            (self.root / "failed" / f"{key}.json").unlink()

    def fail(self, cell: Cell, key: str, reason: str) -> None:
        """Store a cell's failure, with its reason."""
        record = {"kind": cell.kind, "key": key, "title": cell.title, "config": cell.config, "reason": reason}
        with atomic_write(self.root / "failed" / f"{key}.json", overwrite=True, durable=False) as stream:
            stream.write(sealed(record))

    def forget_failure(self, key: str) -> None:
        """Delete a cell's failure, so that it is tried again."""
        (self.root / "failed" / f"{key}.json").unlink(missing_ok=True)

    def work_folder(self, key: str) -> Path:
        """The folder for a cell's unfinished work, which stays until the cell is done; the cell makes it."""
        return self.root / "work" / key

    @contextlib.contextmanager
    def begin(self, cell: Cell, key: str, *, retry_failed: bool = False) -> Iterator[str]:
        """Claim a cell; yields "left" if this process has it, or another process's state: "busy", "done" or "failed".

        Raises:
            OutputError: the disk is full.
        """
        with self.claim(key) as mine:
            if not mine:
                yield "busy"
            elif self.has(cell, key) and self.read(cell, key) is not None:
                yield "done"
            elif not retry_failed and self.failure(key) is not None:
                yield "failed"
            else:
                self._check_space()
                yield "left"

    def trained(self, cell: Cell, key: str) -> tuple[Any, dict[str, bytes]]:
        """A finished training's rates, and its files by name."""
        record = self.read(cell, key)
        assert record is not None
        return record["result"]["rates"], {
            name: (self.folder(cell, key) / name).read_bytes() for name in record["files"]
        }

    def clear_work(self, key: str) -> None:
        """Delete a finished cell's work folder."""
        if (self.root / "work" / key).exists():
            shutil.rmtree(self.root / "work" / key, ignore_errors=True)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Claim a cell; yields whether that worked. A process that dies releases its claims."""
        with claimed(self.root / "locks" / key, patience=0.05) as mine:
            yield mine

    def claimed(self) -> set[str]:
        """Keys of the cells that a process is working on."""
        return {path.name for path in (self.root / "locks").glob("*") if is_claimed(path)}

    def _check_space(self) -> None:
        """OutputError if the disk has no room for the next cell's results."""
        free = shutil.disk_usage(self.root).free
        if free < SPACE:
            raise OutputError(
                f"{self.root}: expected at least {SPACE / 2**20:.0f} MB of free disk space, got {free / 2**20:.0f} MB; "
                "finished cells are kept: free some space, and run the same command again"
            )

    def _whole(self, path: Path, record: Record) -> bool:
        """Whether a record's files are unchanged."""
        for name, digest in record.get("files", {}).items():
            file = path.parent / name
            try:
                with file.open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                        return False
            except OSError:
                return False
        return True

    def _set_aside(self, cell: Cell, path: Path) -> None:
        """Move a damaged result to damaged/; nothing is deleted."""
        source = path.parent if cell.kind in FOLDERS else path
        for number in range(1000):
            target = self.root / "damaged" / f"{source.name}.{number}"
            if not target.exists():
                os.replace(source, target)
                return


def sealed(record: Mapping[str, Any]) -> bytes:
    """A record with its own SHA-256, one line of JSON."""
    content = canonical(record).encode()
    return _HEAD + content + _TAIL % hashlib.sha256(content).hexdigest().encode()


def unsealed(content: bytes) -> Record | None:
    """The inverse of `sealed`; None if any bit has changed."""
    inner = content[len(_HEAD) : -len(_TAIL % _NO_DIGEST)]
    if content != _HEAD + inner + _TAIL % hashlib.sha256(inner).hexdigest().encode():
        return None
    record: Record = json.loads(inner)
    return record
