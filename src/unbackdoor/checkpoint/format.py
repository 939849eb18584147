"""What a kind of model file is: how it is told from others, read and written. Each is a file in `formats`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from unbackdoor.checkpoint.checkpoint import Checkpoint, Contents
from unbackdoor.registry import Registry


class Format(Protocol):
    """A kind of model file."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Ends of the names, in small letters, under which this is written; on reading, the content tells."""

    @property
    def nested(self) -> bool:
        """Whether a file may hold several state dicts, or one below others."""

    def recognises(self, head: bytes, path: Path) -> bool:
        """Whether a file is of this kind, by its first bytes."""

    def read(self, path: Path) -> Contents:
        """Read a file; no code in it runs.

        Raises:
            CheckpointError: it is damaged, refused, or holds no state dict.
        """

    def write(
        self,
        path: Path,
        state: Mapping[str, Any],
        *,
        like: Checkpoint | None,
        metadata: Mapping[str, str],
        overwrite: bool,
    ) -> None:
        """Write a file, whole or not at all.

        Args:
            path: its name.
            state: a state dict, with what it holds besides tensors.
            like: the file, of whatever kind, that it comes from.
            metadata: strings beside it, where this kind has room for them.
            overwrite: whether a file of that name may be replaced.

        Raises:
            OutputError: this kind cannot hold it, or it cannot be written.
        """

    def kept(self, like: Checkpoint) -> tuple[str, ...]:
        """What of a file besides the tensors of its state dict is written again as it is."""

    def lost(self, like: Checkpoint) -> tuple[str, ...]:
        """What of a file besides those tensors this kind does not hold."""


#: By their names; asked in this order whose a file is.
FORMATS: Registry[Format] = Registry("format")


def format_of(path: Path) -> Format | None:
    """The format that is written under a name; None if there is none."""
    suffix = path.suffix.lower()
    return next((FORMATS[name] for name in FORMATS if suffix in FORMATS[name].suffixes), None)
