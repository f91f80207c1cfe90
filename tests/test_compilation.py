"""A compiled program gives the integers of the walked one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exactq import flow
from exactq.compilation import compiled
from exactq.traces import walk


class Residual(nn.Module):
    """Two convolutions with a shortcut, a pool and a classifier: every elementwise kernel of a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, 8, 8) -> scores (n, 4)."""
        y = torch.relu(self.a(x))
        return self.fc(torch.relu(self.b(y) + y).mean((2, 3), keepdim=True).flatten(1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch's own inductor imports torch.jit
def test_a_compiled_emulator_gives_the_same_bits_as_the_walked_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    program = flow.quantize(Residual().eval(), (x[:2],), calibration=[x], recipe="portable").program()
    fast = compiled(program)
    for inputs in (x, 3 * x, x.flip(0)):
        (wanted,), (found,) = walk(program, (inputs,)), fast((inputs,))
        assert torch.equal(found, wanted)
