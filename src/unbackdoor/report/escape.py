"""Names from strangers, made harmless for every kind of output.

A tensor's name may hold anything: terminal commands, line breaks, characters that turn the reading direction. `visible`
shows every such character as its code; what a page shows is escaped on top of that, where its templates are set up.
"""

from __future__ import annotations

import unicodedata

ELLIPSIS = "..."


def visible(text: str) -> str:
    r"""The text with every character that is not printable replaced by its code.

    That is the control, format, surrogate, private and unassigned characters and every separator but the space, so
    ANSI escapes, line breaks, bidirectional overrides, zero-width characters and lone surrogates: `\x1b`, `\u202e`.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _code(char) for char in text)


def width(text: str) -> int:
    """How many columns of a terminal a printable text takes."""
    return len(text) if text.isascii() else sum(_columns(char) for char in text)


def short(text: str, limit: int) -> str:
    """The visible text in at most `limit` columns: the middle is left out, as both ends of a path tell most."""
    # A name may be megabytes long; what lies beyond both ends never shows, so it need not be looked at.
    if len(text) > 2 * limit + 2:
        text = visible(text[: limit + 1]) + "\0" + visible(text[-limit - 1 :])
    else:
        text = visible(text)
        if width(text) <= limit:
            return text
    if limit <= len(ELLIPSIS):
        return _head(text, limit)
    room = limit - len(ELLIPSIS)
    tail = _head(text[::-1], room - room // 2)[::-1]
    return _head(text, room // 2) + ELLIPSIS + tail


def _code(char: str) -> str:
    number = ord(char)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _columns(char: str) -> int:
    # A combining mark counts too, although it takes no column: a name made of a million of them is still cut.
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _head(text: str, limit: int) -> str:
    taken = 0
    for index, char in enumerate(text):
        taken += _columns(char)
        if taken > limit:
            return text[:index]
    return text
