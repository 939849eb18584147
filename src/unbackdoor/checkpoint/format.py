"""The interface of a model file format: recognise, read and write. Each format is a file in `formats`."""

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
        """Lower-case suffixes of files that are written in this format; on reading, the content decides."""

    @property
    def nested(self) -> bool:
        """Whether a file may hold several state dicts, or one inside dicts and lists."""

    def recognises(self, head: bytes, path: Path) -> bool:
        """Whether a file has this format, by its first bytes."""

    def read(self, path: Path) -> Contents:
        """Read a file; no code in it is run.

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
        """Write a file, completely or not at all.

        Args:
            path: its name.
            state: a state dict, which may hold more than tensors.
            like: the original file, of any format.
            metadata: strings to store, if the format can.
            overwrite: whether a file of that name may be replaced.

        Raises:
            OutputError: the format cannot hold the state dict, or the file cannot be written.
        """

    def kept(self, like: Checkpoint) -> tuple[str, ...]:
        """The entries of `like`, besides its weights, that are written again unchanged."""

    def lost(self, like: Checkpoint) -> tuple[str, ...]:
        """The entries of `like` that this format cannot hold."""


#: All formats by name; a file has the first one that recognises it.
FORMATS: Registry[Format] = Registry("format")


def format_of(path: Path) -> Format | None:
    """The format that a file name's suffix asks for; None if there is none."""
    suffix = path.suffix.lower()
    return next((FORMATS[name] for name in FORMATS if suffix in FORMATS[name].suffixes), None)
