"""Every exception that unbackdoor raises on purpose.

UnbackdoorError
├── InputError              an input that cannot be used
│   ├── CheckpointError     a model file: unreadable, refused, or not what it should be
│   ├── ArchitectureError   an architecture: unknown, or not the one in the file
│   ├── DataError           a data set: missing, corrupt, or of the wrong shape
│   ├── SettingError        a hyper-parameter or option outside its range
│   └── MethodError         a method that cannot work on this network, or on these images
├── GraphError              a network whose dataflow could not be read at all
├── PlanError               a plan that does not fit the model it is applied to
├── IncompleteError         part of a model could not be read or paired, and nothing was written
├── DamageError             a repair is predicted to cost too much accuracy, and nothing was written
└── OutputError             a file that could not be written, or must not be overwritten

A message is one line: where, what was expected, what was found, and what to do.
"""

from __future__ import annotations

from typing import Any


class UnbackdoorError(Exception):
    """The root: catch this to catch everything unbackdoor raises on purpose."""


class InputError(UnbackdoorError):
    """An input cannot be used."""


class CheckpointError(InputError):
    """A model file is unreadable, refused, or not what it should be."""


class ArchitectureError(InputError):
    """An architecture is unknown, or is not the one in the file."""


class DataError(InputError):
    """A data set is missing, corrupt, or of the wrong shape."""


class SettingError(InputError):
    """A hyper-parameter or option is outside its range."""


class MethodError(InputError):
    """A method cannot work on this network, or on these images."""


class GraphError(UnbackdoorError):
    """The dataflow of a network could not be read at all."""


class PlanError(UnbackdoorError):
    """A plan does not fit the model it is applied to."""


class IncompleteError(UnbackdoorError):
    """Part of a model could not be read or paired, and nothing was written.

    Attributes:
        report: an `unbackdoor.findings.Report` of that part, and of what would have been done with the rest.
    """

    def __init__(self, message: str, report: Any) -> None:
        super().__init__(message)
        self.report = report


class DamageError(UnbackdoorError):
    """A repair is predicted to cost more accuracy than is allowed, and nothing was written.

    Attributes:
        report: an `unbackdoor.findings.Report` of what would have been done, with the prediction.
    """

    def __init__(self, message: str, report: Any) -> None:
        super().__init__(message)
        self.report = report


class OutputError(UnbackdoorError):
    """A file could not be written, or already exists and must not be overwritten."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type where it says nothing: for a message of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
