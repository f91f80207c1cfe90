"""What a pass is: a function from a graph to an equal graph, and what it says it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from exactq.graphs.graph import Graph


@dataclass(frozen=True)
class Found:
    """A value that a pass looked at and, in a sentence, what it did with it or why it left it."""

    name: str
    what: str


@dataclass(frozen=True)
class PassResult:
    """The graph after a pass; `found` was changed, `kept` was left alone for a reason, `renames` says old name -> new."""

    name: str
    graph: Graph
    found: tuple[Found, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[Found, ...] = ()


Pass = Callable[[Graph], PassResult]
