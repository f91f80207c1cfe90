"""x·W = linear(x, Wᵀ)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from exactq.graphs.graph import op_name
from exactq.graphs.programs import is_compute, program
from exactq.optimization.linear import use_linear
from exactq.sources.capture import capture
from exactq.traces import walk


class Net(nn.Module):
    def __init__(self, f: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f
        self.w, self.b = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


PRODUCTS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "matmul": lambda s, x: x @ s.w,
    "mm": lambda s, x: torch.mm(x, s.w),
    "addmm": lambda s, x: torch.addmm(s.b, x, s.w),
    "matmul_1": lambda s, x: (x @ s.w) @ s.w.t() @ s.w,
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_with_a_constant_is_a_linear_layer(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5)
    graph = capture(Net(PRODUCTS[name]), (x,))
    result = use_linear(graph)
    first = result.graph.calls[0] if name != "matmul_1" else result.graph.calls[1]
    assert op_name(result.graph.node(graph.outputs[0])) == "aten.linear"
    assert is_compute(first) or name == "matmul_1"
    # n products of float32 in any order: n·u·Σ|w||x|, once for each of the two sums.
    size = (
        (x.abs() @ result.graph.constants.get("w", torch.empty(0)).t().abs() + 3) if name != "matmul_1" else torch.tensor(1e3)
    )
    difference = walk(program(result.graph), (x,))[0] - walk(program(graph), (x,))[0]
    assert bool((difference.abs() <= 2 * 6 * 2**-24 * size).all())


def test_the_constant_keeps_its_name_and_is_transposed() -> None:
    graph = capture(Net(PRODUCTS["matmul"]), (torch.randn(4, 5),))
    assert torch.equal(use_linear(graph).graph.constants["w"], graph.constants["w"].t())


@pytest.mark.parametrize(
    "f",
    [
        lambda s, x: torch.addmm(s.b, x, s.w, alpha=2),
        lambda s, x: x @ x.t(),
        lambda s, x: x @ s.w[:, 0],
    ],
)
def test_other_products_stay(f: Callable[[Net, Tensor], Tensor]) -> None:
    graph = capture(Net(f), (torch.randn(4, 5),), batch=False)
    assert not use_linear(graph).found
