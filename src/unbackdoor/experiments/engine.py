"""Engines, which run cells: the interface, and the engine that runs them in this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator

from unbackdoor.errors import UnbackdoorError
from unbackdoor.experiments.perform import Failed, Produced, Progress, Work, perform


class Engine(ABC):
    """Runs work; it does not use stores or grids."""

    #: How many pieces of work it holds at once.
    slots: int

    @abstractmethod
    def submit(self, key: str, work: Work) -> None:
        """Accept a piece of work."""

    @abstractmethod
    def finished(self) -> Iterator[tuple[str, Produced | Failed]]:
        """Wait for at least one finished piece, and yield all that are finished; nothing if there is no work."""

    def close(self) -> None:  # noqa: B027 (optional)
        """Release the workers."""


class Local(Engine):
    """One cell after the other, in this process.

    Args:
        progress: called with the progress of the running cell.
    """

    slots = 1

    def __init__(self, progress: Progress = lambda _done, _total, _note: None) -> None:
        self._queue: deque[tuple[str, Work]] = deque()
        self._progress = progress

    def submit(self, key: str, work: Work) -> None:
        self._queue.append((key, work))

    def finished(self) -> Iterator[tuple[str, Produced | Failed]]:
        if self._queue:
            key, work = self._queue.popleft()
            yield key, attempt(work, self._progress)


def attempt(work: Work, progress: Progress = lambda _done, _total, _note: None) -> Produced | Failed:
    """Run a cell; an exception becomes the reason of a failure."""
    try:
        return perform(work, progress)
    except UnbackdoorError as error:
        return Failed(" ".join(str(error).split()))
    except MemoryError:
        return Failed("out of memory")
    except (KeyboardInterrupt, SystemExit):
        raise
    except OSError as error:  # a full disk is not the cell's fault
        return Failed(f"{error.filename or 'the system'}: {error.strerror or error}", cause="engine")
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        return Failed(f"{type(error).__name__}: {reason}" if reason else type(error).__name__)
