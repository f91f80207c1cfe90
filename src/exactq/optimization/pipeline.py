"""The passes in a row, again and again until none finds anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from exactq.graphs.graph import Graph, op_name
from exactq.optimization.batchnorm import fold_batchnorm
from exactq.optimization.biases import fold_biases
from exactq.optimization.canonical import canonicalize
from exactq.optimization.folding import fold_constants
from exactq.optimization.identities import remove_identities
from exactq.optimization.linear import use_linear
from exactq.optimization.passes import Found, Pass, PassResult
from exactq.optimization.patterns import find_patterns

PASSES: tuple[Pass, ...] = (canonicalize, fold_constants, remove_identities, use_linear, fold_biases, fold_batchnorm)


@dataclass(frozen=True)
class Optimized:
    """The graph at the fixed point, and what each pass found on the way there, in order."""

    graph: Graph
    results: tuple[PassResult, ...]

    @property
    def found(self) -> tuple[Found, ...]:
        """Everything that was changed, in order."""
        return tuple(f for result in self.results for f in result.found)

    @property
    def kept(self) -> tuple[Found, ...]:
        """What a pass left alone, with the reason, as it stands at the end."""
        return tuple(f for result in self.results[-len(PASSES) :] for f in result.kept)

    @property
    def renames(self) -> Mapping[str, str]:
        """Name before the first pass -> name after the last, of each value that lives on under another name."""
        names: dict[str, str] = {}
        for result in self.results:
            names = {old: result.renames.get(new, new) for old, new in names.items()} | {
                old: new for old, new in result.renames.items() if old not in names
            }
        return names


def optimize(graph: Graph) -> Optimized:
    """The graph with every pass applied to a fixed point: the same function, the same bits but for folded layers."""
    results: list[PassResult] = []
    changed = True
    while changed:
        changed = False
        for run in PASSES:
            result = run(graph)
            graph, changed = result.graph, changed or bool(result.found)
            results.append(result)
    return Optimized(graph, tuple(results))


def before_after(before: Graph, after: Graph) -> list[tuple[str, str, str, str]]:
    """One row a call of either graph: name, operator before, operator after, and the activation that goes with it.

    An operator is empty where the graph has no such value. Rows are in the order of the graph before, then what is new.
    """
    old = {before.name(node): op_name(node) for node in before.calls}
    new = {after.name(node): op_name(node) for node in after.calls}
    activations = find_patterns(after)
    return [(name, old.get(name, ""), new.get(name, ""), activations.get(name, "")) for name in old | new]
