"""How a long job speaks: sentences, tables, and progress on what takes longer than a moment.

The shell has its own way to speak; a library is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Talk:
    """`say(text)` tells a sentence, `show(heading, columns, rows)` a table, `track(what, total)` counts steps.

    A sentence begins with a label of at most ten letters, padded to eleven. The value of the context `track` is told the size
    of each step; `total` None is a job of unknown length.
    """

    say: Callable[[str], None]
    show: Callable[[str, tuple[str, ...], list[tuple[Any, ...]]], None]
    track: Callable[[str, int | None], AbstractContextManager[Advance]]


@contextmanager
def _silent_track(what: str, total: int | None) -> Iterator[Advance]:
    yield lambda size: None


SILENT = Talk(lambda text: None, lambda heading, columns, rows: None, _silent_track)
