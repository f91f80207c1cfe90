"""Quantize and dequantize nodes: what is written is what is read, and PyTorch's own operators agree with the grid."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from exactq.graphs import store
from exactq.graphs.graph import Edit, Graph
from exactq.graphs.programs import float_trace
from exactq.graphs.qdq import (
    CODES,
    REAL,
    dequantize,
    makes_grid,
    quantize,
    quantize_dynamically,
    read_dequantize,
    read_dynamic,
    read_quantize,
)
from exactq.kernels.aten import dynamic_grid
from exactq.numerics.formats import INT4, INT8, INT32, UINT8, Format, Grid
from exactq.sources.capture import capture

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def grid(fmt: Format, scale: list[float], zero: int = 0) -> Grid:
    """One scale for the tensor, or one for each row of a matrix."""
    scales = torch.tensor(scale[0]) if len(scale) == 1 else torch.tensor(scale)[:, None]
    return Grid(fmt, scales, torch.full_like(scales, zero, dtype=torch.int32))


@cache
def captured(layer: type[nn.Module], *sizes: int) -> Graph:
    return capture(layer(*sizes), (X,))


def relu_on(at: Grid) -> Graph:
    edit = Edit(captured(nn.ReLU))
    (relu,) = (n for n in edit if n.op == "call_function")
    users = list(relu.users)
    with edit.after(relu):
        real = dequantize(edit, quantize(edit, relu, at, "relu"), at, "relu")
    for user in users:
        user.replace_input_with(relu, real)
    return edit.freeze()


def linear_on(at: Grid) -> Graph:
    edit = Edit(captured(nn.Linear, 4, 3))
    weight = next(n for n in edit if edit.value(n) == "weight")
    users = list(weight.users)
    with edit.graph.inserting_before(users[0]):
        real = dequantize(edit, quantize(edit, weight, at, "weight", 0), at, "weight", 0)
    for user in users:
        user.replace_input_with(weight, real)
    return edit.freeze()


@settings(max_examples=25)
@given(st.floats(2.0**-60, 2.0**60, width=32), st.sampled_from([(UINT8, 0), (UINT8, 255), (INT8, -7), (INT8.narrow, 0)]))
def test_a_grid_comes_back_from_its_nodes_to_the_bit(scale: float, kind: tuple[Format, int]) -> None:
    at = grid(kind[0], [scale], kind[1])
    graph = relu_on(at)
    assert [graph.name(n) for n in graph.calls] == ["relu", f"relu{CODES}", f"relu{REAL}"]
    for node, read in zip(graph.calls[1:], (read_quantize, read_dequantize), strict=True):
        found = read(graph, node)
        assert found is not None
        assert found.axis is None
        assert found.grid.same_as(at)


def test_a_scale_for_each_channel_comes_back_with_its_axis_and_its_constants_are_shared() -> None:
    at = grid(INT8.narrow, [0.1, 0.02, 3.0])
    graph = linear_on(at)
    found = [q for n in graph.calls for read in (read_quantize, read_dequantize) if (q := read(graph, n)) is not None]
    assert [q.axis for q in found] == [0, 0]
    assert all(q.grid.same_as(at) for q in found)
    assert sum(name.startswith("weight_") for name in graph.constants) == 2


def test_other_nodes_say_nothing() -> None:
    graph = relu_on(grid(UINT8, [0.1]))
    relu, codes, real = graph.calls
    assert read_quantize(graph, relu) is read_dequantize(graph, relu) is None
    assert read_quantize(graph, real) is read_dequantize(graph, codes) is None


@pytest.mark.parametrize("fmt", [UINT8, INT8, INT8.narrow])
def test_the_operators_of_pytorch_give_codes_of_the_grid(fmt: Format) -> None:
    graph = relu_on(grid(fmt, [0.25], 3))
    trace = float_trace(graph, (X,))
    at = grid(fmt, [0.25], 3)
    codes: Tensor = trace[f"relu{CODES}"]
    assert codes.dtype == fmt.dtype
    assert torch.equal(codes, at.encode(trace["relu"]))
    assert torch.equal(trace[f"relu{REAL}"], at.decode(codes))


@pytest.mark.parametrize("fmt", [INT4, INT4.narrow])
def test_a_narrower_format_keeps_its_codes_in_the_next_wider_dtype(fmt: Format) -> None:
    graph = relu_on(grid(fmt, [0.25]))
    found = read_quantize(graph, graph.calls[1])
    assert found is not None
    assert (found.grid.format.lo, found.grid.format.hi, found.grid.format.dtype) == (fmt.lo, fmt.hi, torch.int8)


def test_int32_codes_of_a_bias_are_read_as_such() -> None:
    edit = Edit(captured(nn.Linear, 4, 3))
    bias = next(n for n in edit if edit.value(n) == "bias")
    at = Grid(INT32, torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, dtype=torch.int32))
    edit.set_constant(bias, torch.tensor([2**30, -5, 0], dtype=torch.int32))
    users = list(bias.users)
    with edit.graph.inserting_before(users[0]):
        real = dequantize(edit, bias, at, "bias", 0)
    users[0].replace_input_with(bias, real)
    graph = edit.freeze()
    found = next(q for n in graph.calls if (q := read_dequantize(graph, n)) is not None)
    assert found.grid.same_as(at)
    assert graph.constants["bias"].tolist() == [2**30, -5, 0]


@pytest.mark.parametrize("reduce_range", [False, True])
def test_a_grid_that_is_made_of_the_value_is_written_read_and_stored(*, reduce_range: bool) -> None:
    edit = Edit(captured(nn.ReLU))
    (relu,) = (n for n in edit if n.op == "call_function")
    users = list(relu.users)
    with edit.after(relu):
        real = quantize_dynamically(edit, relu, UINT8, "relu@b", reduce_range=reduce_range)
    for user in users:
        user.replace_input_with(relu, real)
    graph = store.loads(*store.dumps(edit.freeze()))
    assert [graph.name(n) for n in graph.calls if makes_grid(n)] == [
        f"relu@b/{end}" for end in ("range", "scale", "zero", "codes", "real")
    ]
    assert [graph.name(n) for n in graph.calls if read_dynamic(n) is not None] == ["relu@b/real"]
    said = read_dynamic(graph.node("relu@b/real"))
    assert said is not None
    assert (graph.name(said.source), said.format, said.reduce_range) == (graph.name(graph.node("relu")), UINT8, reduce_range)
    assert not any(read_quantize(graph, n) or read_dequantize(graph, n) for n in graph.calls)
    values = float_trace(graph, (X,))
    at = dynamic_grid(values["relu"], reduce_range=reduce_range)
    assert abs(float(values["relu@b/scale"]) - float(at.scale)) <= 2.0**-23 * float(at.scale)
    assert int(values["relu@b/zero"]) == int(at.zero)
    assert int(values["relu@b/codes"].max()) == (127 if reduce_range else 255)
