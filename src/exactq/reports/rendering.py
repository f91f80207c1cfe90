"""Facts -> one HTML page that needs nothing but itself: style, script and drawings are inside, and nothing is fetched.

Names, reasons and notes may come from strangers' files. Jinja escapes every one of them; none reaches a script, a style or a
link, where escaping would mean something else. A content security policy lets no script run but the page's own, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from exactq.reports import words
from exactq.reports.colours import LEVELS, level
from exactq.reports.facts import Facts, GridFacts, Histogram, LayerFacts, checked
from exactq.reports.integers import MOST
from exactq.reports.layout import HEIGHT, WIDTH, Point, layout

LETTERS = 21
"""How many letters of a name fit into a box of the drawing."""
BROAD, TALL = 256.0, 56.0


def page(facts: Mapping[str, Any]) -> str:
    """The page of the facts that `report` returned, or of a `report.json` read back; the same facts give the same text.

    Raises `ModelError` for anything else.
    """
    content = checked(facts)
    script = _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    placed = layout([layer.reads for layer in content.layers])
    return _ENVIRONMENT.get_template("page.html.jinja").render(
        facts=content,
        style=Markup(_text("page.css")),
        script=Markup(script),
        digest=digest,
        placed=placed,
        edges=[_curve(edge.points) for edge in placed.edges],
        boxes=[_box(layer, corner) for layer, corner in zip(content.layers, placed.corners, strict=True)],
        measured=[layer for layer in content.layers if layer.sqnr_db is not None],
        widest=max((layer.sqnr_db or 0.0 for layer in content.layers), default=0.0) or 1.0,
        levels=LEVELS,
        weakest=_weakest(content),
    )


@dataclass(frozen=True)
class Box:
    """A layer in the drawing: where, and its two lines of text."""

    x: float
    y: float
    title: str
    below: str


def _box(layer: LayerFacts, corner: Point) -> Box:
    made = "input" if layer.kind == "input" else " + ".join(op.replace("_", " ") for op in layer.operators)
    return Box(round(corner[0], 1), round(corner[1], 1), _clip(layer.name, LETTERS), _clip(made, 19))


def _clip(text: str, most: int) -> str:
    """The text, or its beginning and its end.

    >>> _clip("layer1.0.downsample.0.conv", 13)
    'layer1…0.conv'
    """
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def _curve(points: tuple[Point, ...]) -> str:
    """An SVG path: curves from row to row, straight past the boxes between them."""
    parts = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for position, ((ax, ay), (bx, by)) in enumerate(pairwise(points)):
        if position % 2:
            parts.append(f"V{by:.1f}")
        else:
            half = (ay + by) / 2
            parts.append(f"C{ax:.1f} {half:.1f} {bx:.1f} {half:.1f} {bx:.1f} {by:.1f}")
    return "".join(parts)


@dataclass(frozen=True)
class Bars:
    """A histogram as SVG paths: its bars, the bars of what the grid has no code for, and the ticks of the grid."""

    inside: str
    outside: str
    ticks: str
    zero: float

    @property
    def place(self) -> float:
        """Where zero stands, 0 at the left end and 1 at the right one."""
        return self.zero / BROAD


def bars(grid: GridFacts, seen: Histogram | None) -> Bars:
    """The drawing of a histogram on its grid; of the grid alone where nothing was counted. Heights are square roots."""
    codes = grid.hi - grid.lo + 1
    step = seen.width if seen is not None else -(-codes // 64)
    number = -(-codes // step)
    bar_width = BROAD / number
    inside, outside = [], []
    if seen is not None:
        most = max(*seen.counts, seen.below, seen.above, 1)

        def bar(x: float, wide: float, n: int) -> str:
            tall = max(TALL * (n / most) ** 0.5, 0.6)
            return f"M{x:.1f} {TALL:.0f}v-{tall:.1f}h{wide:.1f}v{tall:.1f}z"

        inside = [bar(bar_width * k, 0.85 * bar_width, n) for k, n in enumerate(seen.counts) if n]
        outside = [bar(x, 4.0, n) for x, n in ((-9.0, seen.below), (BROAD + 5.0, seen.above)) if n]
    apart = 1 if codes <= 64 else 16

    def place(code: int) -> float:
        return round(bar_width * (code - grid.lo + 0.5) / step, 1)

    ticks = [f"M{place(code)} {TALL + 2:.0f}v4" for code in range(grid.lo, grid.hi + 1, apart)]
    return Bars("".join(inside), "".join(outside), "".join(ticks), place(grid.zero[0]))


def coded(text: str) -> Markup:
    """The text escaped, with `names` between backticks as code.

    >>> coded("`a<b` is <i>")
    Markup('<code>a&lt;b</code> is &lt;i&gt;')
    """
    # Only what `escape` made safe is marked so.
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(tight(text)))))


def tight(text: str) -> str:
    """The text with numbers and their units kept on one line."""
    return re.sub(r"(?<=\d) (?=%|dB|[KMG]iB|B\b|ms|points)", "\u00a0", text)


def _tight(write: Callable[..., str]) -> Callable[..., str]:
    return lambda *args: tight(write(*args))


def _weakest(facts: Facts) -> int | None:
    """The position of the layer to look at first: the one of lowest ratio."""
    known = [(layer.sqnr_db, index) for index, layer in enumerate(facts.layers) if layer.sqnr_db is not None]
    return min(known)[1] if known else None


def _text(name: str) -> str:
    return (files("exactq.reports") / name).read_text(encoding="utf-8")


_ENVIRONMENT = Environment(
    loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_ENVIRONMENT.filters |= {
    f.__name__: _tight(f)
    for f in (words.number, words.count, words.short, words.size, words.share, words.decibels, words.dimensions, words.times)
}
_ENVIRONMENT.filters |= {"level": level, "coded": coded, "tight": tight, "several": words.several}
_ENVIRONMENT.globals |= {
    "bars": bars,
    "score": _tight(words.score),
    "change": _tight(words.change),
    "drop": _tight(words.drop),
    "box_width": WIDTH,
    "box_height": HEIGHT,
    "tall": TALL,
    "broad": BROAD,
    "most_integers": MOST,
}
