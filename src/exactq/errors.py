"""The one tree of errors; the class says who can help, the message says what to do.

Every message names the thing, the value, what is allowed and what to do. The shell prints the message
without a traceback and ends with exit code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ExactqError(Exception):
    """The root: anything exactq refuses, with a message for a person."""


class UsageError(ExactqError):
    """A name, option or combination that does not exist: the caller can mend it."""


class ModelError(ExactqError):
    """A model that cannot be read, captured or quantized as asked."""


class DataError(ExactqError):
    """Data that is missing, truncated, of the wrong shape, or not finite."""


class TargetError(ExactqError):
    """A runtime that is missing, too old, or answered with an error."""


class Stopped(ExactqError):
    """Not an error: somebody was asked, and said no. The shell ends with exit code 1."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """A `UsageError` for a bad name: what was asked, the closest known name, and the whole list.

    >>> str(unknown("target", "onnxruntme", ["onnxruntime", "litert"]))
    "unknown target 'onnxruntme': did you mean 'onnxruntime'? Known: litert, onnxruntime"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    return UsageError(f"unknown {kind} '{name}': {guess}Known: {', '.join(names)}")
