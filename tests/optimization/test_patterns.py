"""What a runtime does in one go."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exactq.optimization.canonical import canonicalize
from exactq.optimization.patterns import Pattern, find_patterns, patterns
from exactq.sources.capture import capture


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.conv1(x))
        b = F.relu6(self.conv2(a))
        c = F.relu(a + b)
        d = self.conv3(c)
        e = F.relu(d) + d  # conv3 has two readers
        g = (e + 1).clamp(-1, 1)  # an addition of a literal is no addition of two values
        return F.hardtanh(self.fc(g))


def test_patterns_are_roots_with_the_activation_as_their_only_reader() -> None:
    graph = capture(Net(), (torch.randn(2, 4, 4, 4),))
    expected = {"conv1": "relu", "conv2": "relu6", "add": "relu_1", "fc": "hardtanh"}
    assert find_patterns(graph) == find_patterns(canonicalize(graph).graph) == expected
    assert patterns(graph)[1:] == (
        Pattern("conv2", "relu6", 0.0, 6.0),
        Pattern("add", "relu_1", 0.0, inf),
        Pattern("fc", "hardtanh", -1.0, 1.0),
    )


def test_a_root_that_is_an_output_keeps_its_own_codes() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return (y := self.conv(x)), F.relu(y)

    assert find_patterns(capture(Both(), (torch.randn(2, 4, 4, 4),))) == {}
