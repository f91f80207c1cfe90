"""Talk in a terminal: sentences, tables and progress bars on stderr; quiet in pipes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import IO, Any

import typer

from exactq.talk import Advance, Talk

LABEL = 11
"""How wide the labels of sentences are: `verdict    ok`."""

COLOURS = {"ok": "bold green", "untrained": "bold yellow"}
"""How verdicts look; every other one is red."""


@contextmanager
def job() -> Iterator[None]:
    """Inside, what anybody prints, a user's own factory too, goes to stderr: stdout is for the result alone."""
    with redirect_stdout(sys.stderr):
        yield


def talk(*, tables: Sequence[str] = ()) -> Talk:
    """What a verb hands to the job; bars only where stderr is a terminal, of tables those with these headings."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(text: str) -> None:
        print_lines([(text[:LABEL].strip(), text[LABEL:])], sys.stderr)

    def show(heading: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
        if heading in tables and rows:
            print_table(heading, columns, rows, sys.stderr)

    @contextmanager
    def track(what: str, total: int | None) -> Iterator[Advance]:
        if not console.is_terminal:
            yield lambda size: None
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        known = (BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
        counted = known if total is not None else (SpinnerColumn("line"), TimeElapsedColumn())
        with Progress(TextColumn("{task.description:<10}"), *counted, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda size: bar.advance(task, size)

    return Talk(say, show, track)


def print_lines(lines: Sequence[tuple[str, str]], stream: IO[str] | None = None) -> None:
    """Labels and their sentences; in a terminal wrapped beside the labels, with the verdict in colour."""
    stream = stream if stream is not None else sys.stdout
    if not stream.isatty():
        for label, text in lines:
            typer.echo(f"{label:<{LABEL - 1}} {text}".rstrip(), file=stream)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid()
    table.add_column(width=LABEL, no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for label, text in lines:
        table.add_row(label, Text(text, style=COLOURS.get(text, "bold red") if label == "verdict" else ""))
    Console(file=stream, highlight=False).print(table)


def print_table(heading: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], stream: IO[str] | None = None) -> None:
    """A table that fits the terminal; in a pipe tab-separated lines, whole."""
    stream = stream if stream is not None else sys.stdout
    if not stream.isatty():
        for row in (columns, *rows):
            typer.echo("\t".join(map(str, row)), file=stream)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=heading, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, column in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[position], int) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in row))
    Console(file=stream, highlight=False).print(table)


def print_json(facts: Any) -> None:
    """One JSON document on stdout; infinities and NaN are an error, not text that no reader takes."""
    typer.echo(json.dumps(facts, indent=2, allow_nan=False))
