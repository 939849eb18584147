"""Progress of long work, on stderr: a bar on a terminal, a plain line every ten seconds elsewhere, nothing if quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from unbackdoor.report.escape import visible

#: Seconds before the first plain line and between two; short work prints none.
EVERY = 10.0


@contextmanager
def bar(title: str, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[..., None]]:
    """A function that takes (done, total) and an optional note.

    Args:
        title: what is being done.
        quiet: show nothing.
        clock: seconds, for the plain lines.
    """
    if quiet:
        yield lambda *_, **__: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield plain_lines(title, clock)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            progress.update(task, completed=done, total=total, note=note)

        yield update


def plain_lines(title: str, clock: Callable[[], float]) -> Callable[..., None]:
    """A line at most every ten seconds, such as "ft: 40 of 200 (20 %), loss 0.3; 1 min 20 s so far"."""
    started = last = clock()

    def update(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now = clock()
        if now - last < EVERY:
            return
        last = now
        share = f" ({done / total:.0%})" if total else ""
        minutes, seconds = divmod(round(now - started), 60)
        spent = f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
        click.echo(
            visible(f"{title}: {done:,} of {total:,}{share}{f', {note}' if note else ''}; {spent} so far"), err=True
        )

    return update
