"""Talk in a terminal: sentences, tables and progress bars on stderr; quiet in pipes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from typing import IO, Any

import typer

from exactq.errors import UsageError
from exactq.talk import SILENT, Advance, Question, Talk

LABEL = 11
"""How wide the labels of sentences are: `verdict    ok`."""

WIDE = 60
"""Terminals of fewer columns have figures in place of bars."""

COLOURS = {"ok": "bold green", "untrained": "bold yellow"}
"""How verdicts look; every other one is red."""


@contextmanager
def job() -> Iterator[None]:
    """Inside, what anybody prints, a user's own factory too, goes to stderr: stdout is for the result alone."""
    with redirect_stdout(sys.stderr):
        yield


def talk(*, tables: Sequence[str] = (), asking: bool = False) -> Talk:
    """What a verb hands to the job; bars only where stderr is a terminal, questions only where `asking`.

    `tables` are the headings of the tables that are shown without being asked for.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(text: str) -> None:
        print_lines([(text[:LABEL].strip(), text[LABEL:])], sys.stderr)

    def show(heading: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
        print_table(heading, columns, rows, sys.stderr)

    options: dict[str, Any] = {"ask": ask} if asking else {}
    return Talk(say, show, _bars(console) if console.is_terminal else SILENT.track, tables=frozenset(tables), **options)


def _bars(console: Any) -> Callable[[str, int | None], AbstractContextManager[Advance]]:
    """What tracks jobs by bars: what, how far, what was found, and the time left. A job within another has a second bar."""
    from rich.progress import BarColumn, Progress, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    def time(task: Task) -> str:
        """The time left; the time gone of a job of unknown length."""
        seconds = task.elapsed if task.total is None else task.time_remaining
        return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02}{'' if task.total is None else ' left'}"

    class Time(TextColumn):
        def render(self, task: Task) -> Text:
            """The time as text."""
            return Text(time(task))

    name = TextColumn("{task.description:<10}", table_column=Column(no_wrap=True))
    found = TextColumn("{task.fields[said]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    left = Time("", table_column=Column(no_wrap=True))
    columns = (name, BarColumn(bar_width=20), found, left) if console.width >= WIDE else (name, found, left)
    open_bars: list[Progress] = []

    @contextmanager
    def track(what: str, total: int | None) -> Iterator[Advance]:
        outer = bool(open_bars)
        shown = open_bars[0] if outer else Progress(*columns, console=console, transient=True)
        if not outer:
            open_bars.append(shown)
            shown.start()
        task, done = shown.add_task(what, total=total, said=""), 0

        def advance(size: int, said: str = "") -> None:
            nonlocal done
            done += size
            count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
            shown.update(task, advance=size, said=f"{count} {said}".rstrip())

        try:
            yield advance
        finally:
            shown.remove_task(task)
            if not outer:
                shown.stop()
                open_bars.clear()

    return track


def ask(question: Question) -> str:
    """The answer typed on the terminal, or the default for an empty line; a wrong one is told and asked for again."""
    print_lines([(question.step, question.text)], sys.stderr)
    if question.choices:
        print_lines([("", f"{key}  {what}") for key, what in question.choices.items()], sys.stderr)
    while True:
        answer = typer.prompt(f"{'':<{LABEL}}", default=question.default, err=True, prompt_suffix="").strip()
        answer = answer.lower() if question.choices else answer
        if question.choices and answer not in question.choices:
            print_lines([("", f"'{answer}' is no answer: {', '.join(question.choices)}")], sys.stderr)
            continue
        try:
            question.check(answer)
        except UsageError as error:
            print_lines([("", str(error))], sys.stderr)
            continue
        return answer


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
