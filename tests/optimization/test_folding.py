"""Calls of constants are constants."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exactq.errors import ModelError
from exactq.graphs.programs import program
from exactq.optimization.folding import fold_constants
from exactq.sources.capture import capture
from exactq.traces import walk


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.w * 2)
        return y + torch.arange(4).view(1, 4, 1, 1) + torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)


def test_calls_of_constants_become_constants_of_the_same_name_and_bits() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    graph = capture(Net(), (x,))
    result = fold_constants(graph)
    assert [result.graph.name(n) for n in result.graph.calls] == ["conv2d", "add", "add_1"]
    assert "mul" in result.graph.constants
    assert result.found[0].what == "mul (aten.mul) reads constants only: computed once"
    assert torch.equal(walk(program(result.graph), (x,))[0], walk(program(graph), (x,))[0])


def test_a_parametrized_weight_becomes_the_layers_weight() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    x = torch.randn(2, 3)
    result = fold_constants(capture(layer, (x,)))
    assert [result.graph.name(n) for n in result.graph.calls] == ["linear"]
    with torch.no_grad():
        assert torch.equal(walk(program(result.graph), (x,))[0], layer(x))


def test_random_numbers_are_no_constants() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(3)

    graph = capture(Noise(), (torch.randn(2, 3),))
    assert fold_constants(graph).graph is graph


def test_a_constant_that_comes_out_as_nan_is_an_error_of_the_model() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Parameter(torch.tensor([-1.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.c.sqrt()

    with pytest.raises(ModelError, match=r"`sqrt` \(aten.sqrt\) makes a NaN of the model's own constants"):
        fold_constants(capture(Root(), (torch.randn(2, 3),)))
