"""A graph as a model gives itself back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exactq.errors import DataError
from exactq.sources.capture import capture
from exactq.sources.captured import Captured


def test_a_captured_model_computes_what_its_graph_does_and_gives_it_back() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()
    x = torch.randn(4, 3)
    graph = capture(net, (x,))
    model = Captured(graph).eval()
    assert torch.equal(model(x), net(x))
    assert capture(model, (x,)) is graph
    assert {k.removeprefix("constants."): v.tolist() for k, v in model.state_dict().items()} == {
        k: v.tolist() for k, v in net.state_dict().items()
    }


def test_a_fixed_batch_is_that_of_the_inputs() -> None:
    model = Captured(capture(nn.ReLU(), (torch.randn(2, 3),)))
    (spec,) = capture(model, (torch.randn(5, 3),), batch=False).inputs
    assert (spec.shape, spec.batch) == ((5, 3), False)


@pytest.mark.parametrize(
    "inputs", [(), (torch.randn(2, 4),), (torch.zeros(2, 3, dtype=torch.int64),), (torch.randn(2, 3), torch.randn(2, 3))]
)
def test_inputs_that_the_graph_does_not_take_are_told(inputs: tuple[torch.Tensor, ...]) -> None:
    model = Captured(capture(nn.ReLU(), (torch.randn(2, 3),)))
    with pytest.raises(DataError, match=r"the model refuses inputs .*: it takes `input` float32 \(2, 3\)"):
        capture(model, inputs)
