"""One split of a data set, found on disk and not yet read: what every layout's file hands out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unbackdoor.data.images import LabelledImages

#: Called with (images done, images in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    """A split in some layout.

    Attributes:
        layout: its name, for a reader.
        folder: what all of `files` lie under.
        files: everything that `read` opens, in order.
        read: decodes the split.
    """

    layout: str
    folder: Path
    files: tuple[Path, ...]
    read: Callable[[Progress | None], LabelledImages]
