from __future__ import annotations

import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from exactq.reports.layout import GAP, HEIGHT, ROW, WIDTH, Layout, _rising, layout

Reads = list[tuple[int, ...]]


@st.composite
def graphs(draw: st.DrawFn) -> Reads:
    """Node i reads some of the nodes before it, most often the last few."""
    size = draw(st.integers(1, 25))
    return [tuple(draw(st.lists(st.integers(max(0, i - 5), i - 1), max_size=3, unique=True))) if i else () for i in range(size)]


@given(graphs())
def test_boxes_stand_below_what_they_read_and_never_touch(reads: Reads) -> None:
    found = layout(reads)
    for target, sources in enumerate(reads):
        assert all(found.corners[s][1] + ROW <= found.corners[target][1] for s in sources)
    for i, (ax, ay) in enumerate(found.corners):
        assert 0 <= ax
        assert ax + WIDTH <= found.width + 1e-6
        assert 0 <= ay
        assert ay + HEIGHT <= found.height
        assert all(ay != by or abs(ax - bx) >= WIDTH + GAP - 1e-6 for bx, by in found.corners[:i])


@given(graphs())
def test_edges_join_boxes_and_pass_beside_the_others(reads: Reads) -> None:
    found = layout(reads)
    assert sorted((e.source, e.target) for e in found.edges) == sorted(
        (s, t) for t, sources in enumerate(reads) for s in sources
    )
    for edge in found.edges:
        for end, point, below in ((edge.source, edge.points[0], HEIGHT), (edge.target, edge.points[-1], 0.0)):
            x, y = found.corners[end]
            assert abs(point[0] - x - WIDTH / 2) < 1e-6
            assert point[1] == y + below
        assert all(outside(found, x, y) for x, y in edge.points[1:-1])


def outside(found: Layout, x: float, y: float) -> bool:
    return not any(bx < x < bx + WIDTH and by <= y <= by + HEIGHT for bx, by in found.corners)


def test_a_chain_is_a_straight_line_and_its_residual_edge_has_no_crossing() -> None:
    found = layout([(), (0,), (1,), (2, 0)])
    assert max(abs(found.corners[i][0] - found.corners[i + 1][0]) for i in (1, 2)) < WIDTH / 4
    assert layout([(), (0,), (1,)]).corners == ((6.0, 6.0), (6.0, 80.0), (6.0, 154.0))


def test_what_reads_nothing_stands_right_above_its_reader() -> None:
    found = layout([(), (0,), (1,), (), (2, 3)])
    assert found.corners[3][1] == found.corners[2][1]


def test_a_graph_without_nodes_is_an_empty_drawing() -> None:
    assert layout([]).corners == ()


def test_two_hundred_nodes_with_residual_edges_are_placed_in_a_second() -> None:
    reads = [() if i == 0 else (i - 1, i - 4) if i % 4 == 0 else (i - 1,) for i in range(200)]
    start = time.perf_counter()
    assert layout(reads) == layout(reads)
    assert time.perf_counter() - start < 2


@given(st.lists(st.tuples(st.integers(-20, 20), st.integers(1, 5)), min_size=1, max_size=8))
def test_rising_is_the_mean_over_each_plateau_and_rises(pairs: list[tuple[int, int]]) -> None:
    values, weights = [float(v) for v, _ in pairs], [float(w) for _, w in pairs]
    found = _rising(values, weights)
    assert all(a <= b + 1e-9 for a, b in pairwise(found))
    assert abs(sum(w * (f - v) for f, v, w in zip(found, values, weights, strict=True))) < 1e-6
    if values == sorted(values):
        assert found == values
