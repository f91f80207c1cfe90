"""What is removed has the bits of what it read; what only looks like an identity stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exactq.graphs.graph import Graph, op_name
from exactq.graphs.programs import program
from exactq.optimization.identities import remove_identities
from exactq.sources.capture import capture
from exactq.traces import walk

SPECIAL = torch.tensor([0.0, -0.0, 1e-45, -1.5, float("inf"), float("-inf"), 3e38, 7.0, -1e-40]).reshape(1, 1, 3, 3)


class Net(nn.Module):
    """relu(f(x·2)): something before and behind the call in question."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return torch.neg(self.f(x * 2))


def captured(f: Callable[[Tensor], Tensor]) -> Graph:
    return capture(Net(f), (torch.randn(2, 1, 3, 3),))


GONE: dict[str, Callable[[Tensor], Tensor]] = {
    "alias and detach": lambda x: x.detach().view_as(x),
    "clone": lambda x: x.clone(),
    "dropout": lambda x: F.dropout(x, training=False),
    "slice of everything": lambda x: x[:, :, 0:3],
    "view to the same shape": lambda x: x.view(x.shape),
    "reshape to the same shape": lambda x: x.reshape(-1, 1, 3, 3),
    "expansion to the same shape": lambda x: x.expand(-1, 1, 3, 3),
    "conversion to the same dtype": lambda x: x.to(torch.float32).type_as(x),
    "identity permutation": lambda x: x.permute(0, 1, 2, -1),
    "padding by nothing": lambda x: torch.constant_pad_nd(x, [0, 0, 0, 0], 1.0),
    "times one": lambda x: x * 1,
    "by one": lambda x: x / 1.0,
    "minus zero": lambda x: x - 0,
    "cat of one": lambda x: torch.cat([x], 1),
    "maximum of one": lambda x: F.max_pool2d(x, 1),
    "squeeze of nothing": lambda x: x.squeeze(2),
    "repeat once": lambda x: x.repeat(1, 1, 1, 1),
    "flatten of one": lambda x: x.flatten(2, 2),
    "several": lambda x: F.dropout(x.clone()[:], training=False).contiguous() * 1,
}

STAYS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "plus zero would turn -0 into 0": (lambda x: x + 0, "aten.add"),
    "minus -0 too": (lambda x: x - (-0.0), "aten.sub"),
    "average of one too": (lambda x: F.avg_pool2d(x, 1), "aten.avg_pool2d"),
    "adaptive average of one too": (lambda x: F.adaptive_avg_pool2d(x, 3), "aten.adaptive_avg_pool2d"),
    "a floor": (lambda x: torch.div(x, 1, rounding_mode="floor"), "aten.div"),
    "a shift by padding": (lambda x: torch.constant_pad_nd(x, [1, -1], 0.0), "aten.constant_pad_nd"),
    "a real slice": (lambda x: x.narrow(2, 0, 2), "aten.slice"),
    "a real permutation": (lambda x: x.permute(0, 1, 3, 2), "aten.permute"),
    "a square transposition": (lambda x: x.transpose(2, 3), "aten.transpose"),
    "another dtype": (lambda x: x.double(), "aten._to_copy"),
    "a window": (lambda x: F.max_pool2d(x, 1, 2), "aten.max_pool2d"),
    "two": (lambda x: x * 2, "aten.mul"),
}


@pytest.mark.parametrize("what", GONE)
def test_an_identity_is_removed_and_every_bit_stays(what: str) -> None:
    graph = captured(GONE[what])
    result = remove_identities(graph)
    assert [result.graph.name(n) for n in result.graph.calls] == ["mul", "neg"]
    assert {f.name for f in result.found} == set(result.renames) == {graph.name(n) for n in graph.calls} - {"mul", "neg"}
    assert set(result.renames.values()) <= {"mul"}
    (before,), (after,) = walk(program(graph), (SPECIAL,)), walk(program(result.graph), (SPECIAL,))
    assert torch.equal(before.view(torch.int32), after.view(torch.int32))


@pytest.mark.parametrize("what", STAYS)
def test_what_changes_a_bit_or_a_shape_stays(what: str) -> None:
    f, operator = STAYS[what]
    graph = captured(f)
    result = remove_identities(graph)
    assert result.graph is graph
    assert operator in [op_name(n) for n in graph.calls]


def test_a_copy_that_a_view_needs_for_its_memory_order_stays() -> None:
    result = remove_identities(captured(lambda x: x.permute(0, 1, 3, 2).contiguous().view(-1, 9)))
    assert [op_name(n) for n in result.graph.calls][1:4] == ["aten.permute", "aten.clone", "aten.view"]
    result.graph.module(torch.randn(4, 1, 3, 3))


def test_a_view_that_is_an_identity_at_one_batch_size_only_stays() -> None:
    class Fold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.neg(x.view(2, -1))

    graph = capture(Fold(), (torch.randn(2, 4),), batch=True)
    assert len(remove_identities(graph).graph.calls) == (2 if graph.inputs[0].batch else 1)


def test_an_identity_at_the_end_gives_the_output_its_sources_name() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(), nn.Identity())
    result = remove_identities(capture(model, (torch.randn(2, 3),)))
    assert result.graph.outputs == ("0",)
    assert [f.what for f in result.found] == ["1 (aten.clone) gives back the bits of 0: removed"]


def test_a_graph_of_nothing_but_an_identity_returns_its_input() -> None:
    result = remove_identities(capture(nn.Dropout(), (torch.randn(2, 3),)))
    assert result.graph.outputs == ("input",)
