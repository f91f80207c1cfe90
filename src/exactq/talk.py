"""How a long job speaks and asks: sentences, tables, questions, and progress on what takes longer than a moment.

The shell has its own way to speak; a library is silent, and answers each question by its default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol


class Advance(Protocol):
    """What a job that is tracked calls after each step: how large it was, and in a few words what it found."""

    def __call__(self, size: int, said: str = "") -> None:
        """Nothing; the progress is told."""


@dataclass(frozen=True)
class Question:
    """A question before the step `step`: `default` is the answer of who just agrees.

    `choices` are the answers there are, each with what it does; none stands for free text, which `check` refuses by raising
    `UsageError`.
    """

    step: str
    text: str
    default: str
    choices: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[str], object] = lambda answer: None


@dataclass(frozen=True)
class Talk:
    """`say(text)` tells a sentence, `show(heading, columns, rows)` a table, `track(what, total)` counts steps.

    A sentence begins with a label of at most ten letters, padded to eleven. The value of the context `track` is told the size
    of each step; `total` None is a job of unknown length. `ask(question)` gives one of its choices, or a text that it allows.
    `tables` are the headings of those that are shown without being asked for.
    """

    say: Callable[[str], None]
    show: Callable[[str, tuple[str, ...], list[tuple[Any, ...]]], None]
    track: Callable[[str, int | None], AbstractContextManager[Advance]]
    ask: Callable[[Question], str] = lambda question: question.default
    tables: frozenset[str] = frozenset()

    def show_unasked(self, heading: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
        """Nothing; the table was shown if it is one of `tables`, and has rows."""
        if heading in self.tables and rows:
            self.show(heading, columns, rows)


def ignore(size: int, said: str = "") -> None:
    """Nothing: the progress of a job that nobody watches."""


@contextmanager
def _silent_track(what: str, total: int | None) -> Iterator[Advance]:
    yield ignore


SILENT = Talk(lambda text: None, lambda heading, columns, rows: None, _silent_track)
