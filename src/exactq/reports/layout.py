"""A graph placed in rows: each node below all that it reads, long edges beside the nodes they pass, few crossings.

Layered drawing after Sugiyama, Tagawa and Toda (1981). Rows are longest paths; an edge over several rows gets a waypoint in
each; rows are ordered by the mean place of their neighbours; then every row takes the places nearest to its neighbours that
keep the order and the gaps, which is an isotonic regression (pool adjacent violators). The same graph gives the same places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 184.0, 44.0
GAP, ROW = 20.0, 74.0
MARGIN = 6.0
SWEEPS = 12

Point = tuple[float, float]


@dataclass(frozen=True)
class Edge:
    """From node `source` to node `target`: the points on the way, the first below the source, the last above the target."""

    source: int
    target: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Layout:
    """Upper left corners of the nodes, the edges, and the size of the whole."""

    corners: tuple[Point, ...]
    edges: tuple[Edge, ...]
    width: float
    height: float


def layout(reads: Sequence[Sequence[int]]) -> Layout:
    """The places of nodes that each read some of those before it.

    >>> found = layout([(), (0,), (0, 1)])  # the edge from 0 to 2 passes 1 on its side
    >>> [y for _, y in found.corners], len(found.edges[1].points)
    ([6.0, 80.0, 154.0], 4)
    """
    if not reads:
        return Layout((), (), 2 * MARGIN, 2 * MARGIN)
    row_of = _rows(reads)
    chains: list[list[int]] = []
    below: dict[int, list[int]] = {i: [] for i in range(len(reads))}
    above: dict[int, list[int]] = {i: [] for i in range(len(reads))}
    for target, sources in enumerate(reads):
        for source in dict.fromkeys(sources):
            chain = [source]
            for row in range(row_of[source] + 1, row_of[target]):
                chain.append(len(row_of))
                row_of.append(row)
                below[chain[-1]], above[chain[-1]] = [], []
            chain.append(target)
            chains.append(chain)
            for a, b in pairwise(chain):
                below[a].append(b)
                above[b].append(a)
    rows: list[list[int]] = [[] for _ in range(max(row_of) + 1)]
    for node, row in enumerate(row_of):
        rows[row].append(node)
    rows = _ordered(rows, above, below)
    middle = _placed(rows, above, below, len(reads))
    left = min(m - _width(n, len(reads)) / 2 for n, m in middle.items())
    right = max(m + _width(n, len(reads)) / 2 for n, m in middle.items())
    x = {n: m - left + MARGIN for n, m in middle.items()}
    top = [MARGIN + ROW * row for row in row_of]
    edges = []
    for chain in chains:
        points = [(x[chain[0]], top[chain[0]] + HEIGHT)]
        for way in chain[1:-1]:
            points += [(x[way], top[way]), (x[way], top[way] + HEIGHT)]
        edges.append(Edge(chain[0], chain[-1], (*points, (x[chain[-1]], top[chain[-1]]))))
    corners = tuple((x[i] - WIDTH / 2, top[i]) for i in range(len(reads)))
    return Layout(corners, tuple(edges), right - left + 2 * MARGIN, ROW * (len(rows) - 1) + HEIGHT + 2 * MARGIN)


def _rows(reads: Sequence[Sequence[int]]) -> list[int]:
    rows: list[int] = []
    for sources in reads:
        rows.append(1 + max((rows[s] for s in sources), default=-1))
    first: dict[int, int] = {}
    for target, sources in enumerate(reads):
        for source in sources:
            first[source] = min(first.get(source, rows[target]), rows[target])
    # What reads nothing stands right above its first reader.
    return [first[i] - 1 if not sources and i in first else rows[i] for i, sources in enumerate(reads)]


def _width(node: int, real: int) -> float:
    return WIDTH if node < real else 0.0


def _ordered(rows: list[list[int]], above: dict[int, list[int]], below: dict[int, list[int]]) -> list[list[int]]:
    best, fewest = rows, _crossings(rows, below)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        rows = [list(row) for row in rows]
        near = above if sweep % 2 == 0 else below
        indices = range(1, len(rows)) if sweep % 2 == 0 else range(len(rows) - 2, -1, -1)
        for index in indices:
            place = {n: p for row in rows for p, n in enumerate(row)}
            mean = {n: sum(place[m] for m in near[n]) / len(near[n]) if near[n] else float(place[n]) for n in rows[index]}
            rows[index].sort(key=lambda n, mean=mean: mean[n])  # type: ignore[misc]
        if (crossings := _crossings(rows, below)) < fewest:
            best, fewest = rows, crossings
    return best


def _crossings(rows: list[list[int]], below: dict[int, list[int]]) -> int:
    count = 0
    for row, following in pairwise(rows):
        place = {n: p for p, n in enumerate(following)}
        ends = [sorted(place[m] for m in below[n]) for n in row]
        seen: list[int] = []
        for mine in ends:
            count += sum(1 for a in seen for b in mine if a > b)
            seen += mine
    return count


def _placed(rows: list[list[int]], above: dict[int, list[int]], below: dict[int, list[int]], real: int) -> dict[int, float]:
    """Node -> the middle of its place, in a few sweeps down and up."""
    middle: dict[int, float] = {}
    for row in rows:
        at = 0.0
        for node in row:
            middle[node] = at + _width(node, real) / 2
            at += _width(node, real) + GAP

    def pull(a: int, b: int) -> float:
        # Long edges want to be straight, then chains of nodes; an edge that joins a node gives way.
        return 8.0 if a >= real and b >= real else 4.0 if a < real and b < real else 1.0

    for sweep in range(2 * SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted, weights = [], []
            for node in row:
                near = [*above[node], *below[node]]
                weight = sum(pull(node, m) for m in near)
                wanted.append(sum(pull(node, m) * middle[m] for m in near) / weight if near else middle[node])
                weights.append(weight or 1.0)
            offsets = [0.0]
            for a, b in pairwise(row):
                offsets.append(offsets[-1] + (_width(a, real) + _width(b, real)) / 2 + GAP)
            shifted = _rising([w - o for w, o in zip(wanted, offsets, strict=True)], weights)
            for node, place, offset in zip(row, shifted, offsets, strict=True):
                middle[node] = place + offset
    return middle


def _rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The rising sequence of least weighted squared distance to `values`."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, wa, na), (b, wb, nb) = blocks[-2:]
            blocks[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return [value for value, _, count in blocks for _ in range(count)]
