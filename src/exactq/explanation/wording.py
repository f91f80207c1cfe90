"""Explanations as text of 80 columns and as JSON: lines, tables of terms, numbers that every reader takes."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from exactq.kernels.anatomy import Line
from exactq.numerics.scalars import shown

if TYPE_CHECKING:
    from exactq.explanation.element import Explanation

WIDTH = 80
LABEL = 13

TERM, REST = "term", "more"
"""The keys of a row: what it adds to the sum; and, of one that stands for those left out, how many they are."""

HEADS = {"x_at": "x at", "w_at": "w at", "w_at_2": "w at", "centred": "x-zx"}
"""The names of columns, where they are not those of the JSON."""

Rows = tuple[Mapping[str, Any], ...]


def largest(rows: Rows, count: int) -> Rows:
    """The rows with the largest last numbers, in their order, and one with the number of all others, and their sum if terms."""
    if len(rows) <= count:
        return rows
    key = list(rows[0])[-1]
    order = sorted(range(len(rows)), key=lambda i: (-abs(rows[i][key]), i))
    kept = set(order[:count])
    rest = [row[key] for i, row in enumerate(rows) if i not in kept]
    summed = {key: sum(rest)} if key == TERM else {}
    return (*(row for i, row in enumerate(rows) if i in kept), {REST: len(rest), **summed})


def text(explanation: Explanation) -> str:
    """The explanation for people: a headline, notes, and a paragraph or table a step."""
    index = ",".join(map(str, explanation.index))
    head = f"{explanation.made}[{index}] = code {explanation.code}, real {shown(np.float32(explanation.real))}"
    lines = [*textwrap.wrap(head, WIDTH), f"{explanation.target}@{explanation.isa}, {explanation.kernel}"]
    for note in explanation.notes:
        lines += textwrap.wrap(f"({note})", WIDTH)
    lines.append("")
    for step in explanation.steps:
        lines += paragraph(step.name, step.text)
        lines += [" " * LABEL + row for row in _terms(step.rows)]
    return "\n".join(lines)


def paragraph(label: str, words: str) -> list[str]:
    """A label and its words beside it, wrapped."""
    gap = " " * LABEL
    return textwrap.wrap(f"{label:<{LABEL}}{words}", WIDTH, subsequent_indent=gap, break_on_hyphens=False)


def _terms(rows: Rows) -> list[str]:
    """The rows of a line as a table; that which stands for the others has its words in front."""
    if not rows:
        return []
    columns = list(rows[0])
    cells = [[cell(row.get(c)) if c in row or i else f"{row[REST]} more" for i, c in enumerate(columns)] for row in rows]
    return table([HEADS.get(c, c) for c in columns], cells)


def cell(value: Any) -> str:
    """A number or a place in a table."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(str, value))
    return value if isinstance(value, str) else "" if value is None else shown(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns under their names, right-aligned but the first."""
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]

    def drawn(line: Sequence[str]) -> str:
        return "  ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True)))

    return [drawn(line).rstrip() for line in (columns, *rows)]


def line_json(line: Line) -> dict[str, Any]:
    """A line as plain data: name, text, value, then its numbers by name, and its rows where it has some."""
    values = {key: plain(value) for key, value in line.values.items()}
    rows = {"rows": [{key: plain(value) for key, value in row.items()} for row in line.rows]} if line.rows else {}
    found = {"name": line.name, "text": line.text, "value": plain(line.value), **values, **rows}
    json.dumps(found, allow_nan=False)  # what no JSON holds is a bug of a kernel's anatomy
    return found


def plain(value: Any) -> Any:
    """A value as JSON has it: float32 as the same double, places as lists, what is not finite as null."""
    if isinstance(value, np.floating | float):
        return float(value) if isfinite(value) else None
    return list(value) if isinstance(value, tuple) else value
