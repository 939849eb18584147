"""Where results are kept: one immutable JSON record a cell, and for a training the network beside it.

    ROOT/data/NAME.json            what the data set held when it was first used here
    ROOT/training/KEY/             model.safetensors, attack.json, attack.safetensors, log.jsonl, record.json
    ROOT/repair/KEY.json           a repair's record; correlation/ and probe/ likewise
    ROOT/failed/KEY.json           why a cell failed
    ROOT/damaged/                  records that were not what was written
    ROOT/work/                     unfinished work; locks/ who is at it

A record carries its own SHA-256, and those of the files beside it: what was truncated or altered is found, set aside,
and done again, so that no write waits for the disk. A record appears under its name whole or not at all.
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
#: What stands before and behind a record's own JSON.
_HEAD, _TAIL, _NO_DIGEST = b'{"record":', b',"sha256":"%b"}\n', b"0" * 64
#: The least free space, in bytes, with which work is begun.
SPACE = 64 * 2**20
#: Kinds whose results are more than a record.
FOLDERS = ("training",)


class Store:
    """Results on disk; several processes may share one.

    Args:
        root: where.
        make: whether to make it if it is missing.

    Raises:
        DataError: it is missing, and is not to be made.
        OutputError: it cannot be made or written.
    """

    def __init__(self, root: str | Path, *, make: bool = True) -> None:
        self.root = Path(root)
        if not make:
            if not (self.root / "data").is_dir():
                raise DataError(f"{self.root}: expected a store, as `unbackdoor bench run --store` makes it")
            return
        try:
            for name in ("data", "failed", "damaged", "work", "locks", *VERSIONS):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.root}: a store cannot be made here: {error.strerror or error}") from error

    @classmethod
    def empty(cls, root: str | Path) -> Store:
        """What a store is before it is made: to be read, and nothing is in it."""
        store = cls.__new__(cls)
        store.root = Path(root)
        return store

    # What is there

    def path(self, cell: Cell, key: str) -> Path:
        """Of a cell's record, whether it is there or not."""
        if cell.kind in FOLDERS:
            return Path(f"{self.root}/{cell.kind}/{key}/{RECORD}")
        return Path(f"{self.root}/{cell.kind}/{key}.json")

    def read(self, cell: Cell, key: str, *, look: bool = False) -> Record | None:
        """A finished cell's record; None if there is none, or it is damaged and was set aside.

        Args:
            cell, key: whose.
            look: whether nothing but the record is read, and nothing is set aside.
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
        """Whether a record is there, unread: for a quick count."""
        return self.path(cell, key).exists()

    def failure(self, key: str) -> Record | None:
        """Why a cell failed, if it did."""
        try:
            return unsealed((self.root / "failed" / f"{key}.json").read_bytes())
        except FileNotFoundError:
            return None

    def outcomes(
        self, cells: Iterable[Cell], digests: Mapping[str, str] | None = None
    ) -> Iterator[tuple[Cell, str | None, Record | None, Record | None]]:
        """Each cell with its key, its record if it is done, and else its failure if it failed; nothing is set aside.

        The key is None where the cell's data set was never used here, nor is among `digests`.
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
        """Where a training's files are."""
        return self.path(cell, key).parent

    def digests(self) -> dict[str, str]:
        """Name of a data set -> digest of its content, of those used here."""
        found = {}
        for path in sorted((self.root / "data").glob("*.json")):
            record = unsealed(path.read_bytes())
            if record is not None:
                found[record["name"]] = record["digest"]
        return found

    # What comes in

    def check_data(self, name: str, digest: str) -> None:
        """Note a data set's content, or hold it against what was used here before.

        Raises:
            DataError: it is another.
        """
        known = self.digests().get(name)
        if known is None:
            path = self.root / "data" / f"{name.replace(os.sep, '_')}.json"
            with atomic_write(path, overwrite=True, durable=False) as stream:
                stream.write(sealed({"name": name, "digest": digest}))
        elif known != digest:
            raise DataError(
                f"{self.root}: holds results on another version of {name!r} (digest {known[:12]}, this one has "
                f"{digest[:12]}); use another store, or the data that it was begun with"
            )

    def put(self, cell: Cell, key: str, record: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Keep a finished cell; the record last.

        Args:
            record: without its key and the digests of its files, which are added here.
            files: what stands beside it, by name.
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
        """Keep a cell's failure, with its reason."""
        record = {"kind": cell.kind, "key": key, "title": cell.title, "config": cell.config, "reason": reason}
        with atomic_write(self.root / "failed" / f"{key}.json", overwrite=True, durable=False) as stream:
            stream.write(sealed(record))

    def forget_failure(self, key: str) -> None:
        """So that a failed cell is tried again."""
        (self.root / "failed" / f"{key}.json").unlink(missing_ok=True)

    def work_folder(self, key: str) -> Path:
        """Where a cell may leave unfinished work, once it has made it; still there when it is taken up again."""
        return self.root / "work" / key

    @contextlib.contextmanager
    def begin(self, cell: Cell, key: str, *, retry_failed: bool = False) -> Iterator[str]:
        """Claim a cell: it is "left" to this process; or another is at it ("busy"), or has "done" it or "failed" since.

        Raises:
            OutputError: its disk has no room for the results.
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
        """Behind a finished cell."""
        if (self.root / "work" / key).exists():
            shutil.rmtree(self.root / "work" / key, ignore_errors=True)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process alone works on a cell; a process that dies lets go of its claims."""
        with claimed(self.root / "locks" / key, patience=0.05) as mine:
            yield mine

    def claimed(self) -> set[str]:
        """Keys of the cells that a process is working on."""
        return {path.name for path in (self.root / "locks").glob("*") if is_claimed(path)}

    def _check_space(self) -> None:
        """OutputError unless its disk has room for the next cell's results."""
        free = shutil.disk_usage(self.root).free
        if free < SPACE:
            raise OutputError(
                f"{self.root}: {free / 2**20:.0f} MB are free on its disk, expected {SPACE / 2**20:.0f} at least; what "
                "is done is kept: make room, and give the same command again"
            )

    def _whole(self, path: Path, record: Record) -> bool:
        """Whether the files beside a record are those that it was written with."""
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
        """Move what is damaged out of the way, and lose nothing."""
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
    """The inverse of `sealed`; None if a single bit of it has changed."""
    inner = content[len(_HEAD) : -len(_TAIL % _NO_DIGEST)]
    if content != _HEAD + inner + _TAIL % hashlib.sha256(inner).hexdigest().encode():
        return None
    record: Record = json.loads(inner)
    return record
