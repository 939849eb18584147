"""Name -> thing, in the order of registration; an unknown name is answered with the known ones."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from unbackdoor.errors import SettingError

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of named things of one kind.

    `kind` is the noun used in messages ("attack", "data set", "network").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Enter `entry` under `name`; a name that is taken is a programming error (ValueError)."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        """The entry called `name`; SettingError names the alternatives."""
        if name not in self._entries:
            close = get_close_matches(name, self._entries, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise SettingError(f"unknown {self.kind} {name!r}: {hint}known are {', '.join(self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
