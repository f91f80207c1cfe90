"""A graph as float steps; shapes and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from exactq.errors import ModelError
from exactq.graphs.graph import Graph
from exactq.graphs.programs import example_inputs, fake_values, float_trace, is_compute, multiply_accumulates, program, shapes
from exactq.sources.capture import capture
from exactq.traces import walk


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.linear = nn.Linear(6 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.flatten(self.up(self.conv(x)), 1))


@pytest.fixture(scope="module")
def net() -> tuple[Net, Graph]:
    torch.manual_seed(0)
    model = Net().eval()
    return model, capture(model, (torch.randn(1, 4, 8, 8),))


def test_the_program_gives_the_models_bits(net: tuple[Net, Graph]) -> None:
    model, graph = net
    x = torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        (out,) = walk(program(graph), (x,))
        assert torch.equal(out, model(x))


def test_batches_in_another_memory_order_pass_through_a_view(net: tuple[Net, Graph]) -> None:
    model, graph = net
    x = torch.randn(3, 8, 8, 4).permute(0, 3, 1, 2)
    with torch.no_grad():
        (out,) = walk(program(graph), (x,))
        torch.testing.assert_close(out, model(x), rtol=0, atol=1e-5)


def test_a_float_trace_holds_every_call_in_order(net: tuple[Net, Graph]) -> None:
    _, graph = net
    assert list(float_trace(graph, example_inputs(graph, 2))) == [graph.name(n) for n in graph.calls]


def test_shapes_are_those_of_a_real_walk(net: tuple[Net, Graph]) -> None:
    _, graph = net
    found = shapes(graph, batch=3)
    assert found["x"] == (3, 4, 8, 8)
    assert found["conv.weight"] == (8, 2, 3, 3)
    for name, value in float_trace(graph, example_inputs(graph, 3)).items():
        assert found[name] == tuple(value.shape)
        fake = fake_values(graph, 3)[name]
        assert (fake.dtype, fake.stride()) == (value.dtype, value.stride())


def test_a_batch_size_that_the_operators_refuse_is_an_error_of_the_model() -> None:
    graph = capture(nn.Flatten(0), (torch.randn(2, 3),))
    edited = Graph(graph.module, graph.names, tuple(type(i)(i.name, (2, -1), i.dtype) for i in graph.inputs))
    with pytest.raises((ModelError, RuntimeError)):
        shapes(edited)


def count_by_loops(weight: tuple[int, ...], out: tuple[int, ...]) -> int:
    return sum(weight[1] * weight[2] * weight[3] for _ in range(out[1] * out[2] * out[3]))


def test_multiply_accumulates_are_those_one_counts_by_hand(net: tuple[Net, Graph]) -> None:
    _, graph = net
    counts = multiply_accumulates(graph, shapes(graph))
    assert counts == {
        "conv": count_by_loops((8, 2, 3, 3), (1, 8, 4, 4)),
        "up": 8 * 4 * 4 * (3 * 2 * 2),  # each input element meets out/groups × taps
        "linear": 5 * 384,
    }


def test_only_layers_with_a_constant_weight_compute(net: tuple[Net, Graph]) -> None:
    _, graph = net
    assert [graph.name(n) for n in graph.calls if is_compute(n)] == ["conv", "up", "linear"]

    class Dynamic(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return nn.functional.linear(x, w)

    dynamic = capture(Dynamic(), (torch.randn(2, 3), torch.randn(2, 3)))
    assert not any(is_compute(n) for n in dynamic.calls)


def test_example_inputs_have_the_graphs_shapes_and_repeat(net: tuple[Net, Graph]) -> None:
    _, graph = net
    (a,), (b,) = example_inputs(graph, 4), example_inputs(graph, 4)
    assert a.shape == (4, 4, 8, 8)
    assert torch.equal(a, b)
    tokens = capture(nn.Embedding(5, 2), (torch.zeros(2, 3, dtype=torch.long),))
    assert example_inputs(tokens, 2)[0].tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    "make", [lambda: nn.LSTM(4, 3, batch_first=True), lambda: nn.MultiheadAttention(4, 2, batch_first=True)]
)
def test_operators_with_several_results_run(make: Callable[[], nn.Module]) -> None:
    model, x = make().eval(), torch.randn(2, 5, 4)
    inputs = (x,) if isinstance(model, nn.LSTM) else (x, x.clone(), x.clone())
    graph = capture(model, inputs)
    assert shapes(graph, 3)[graph.outputs[0]][0] == 3
    assert all(isinstance(v, Tensor) for v in float_trace(graph, example_inputs(graph, 3)).values())
    with torch.no_grad():
        (out, *_), (expected, *_) = walk(program(graph), inputs), model(*inputs)
    # Eager attention has a fast path of its own, which adds up in another order: values below 1, sums of 5 and 4 products.
    assert (out - expected).abs().max() <= (0 if isinstance(model, nn.LSTM) else 32 * 2**-24)
