"""Talk in a terminal: sentences, tables and progress bars on stderr; quiet in pipes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exactq.talk import Advance, Talk


def talk(*, tables: bool = False) -> Talk:
    """What a verb hands to the job; bars only where stderr is a terminal, tables only where asked for."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(text: str) -> None:
        console.print(text, markup=False)

    def show(heading: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
        if tables:
            print_table(heading, columns, rows, stderr=True)

    @contextmanager
    def track(what: str, total: int | None) -> Iterator[Advance]:
        if not console.is_terminal:
            yield lambda size: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*parts, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda size: bar.advance(task, size)

    return Talk(say, show, track)


def print_table(heading: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]], *, stderr: bool = False) -> None:
    """A table that fits the terminal; in a pipe tab-separated lines, whole."""
    stream = sys.stderr if stderr else sys.stdout
    if not stream.isatty():
        print("\t".join(columns), file=stream)
        for row in rows:
            print("\t".join(map(str, row)), file=stream)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=heading, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(str, row))
    Console(stderr=stderr, highlight=False).print(table, markup=False)


def print_json(facts: Any) -> None:
    """One JSON document on stdout; infinities and NaN are an error, not text that no reader takes."""
    print(json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False))
