"""Small models and data for training tests: seconds, not minutes."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exactq import flow
from exactq.datasets.splits import Indexed, in_memory
from exactq.graphs.graph import Graph
from exactq.numerics.formats import INT4, INT8, Format
from exactq.plans.recipes import Match, Recipe, Rule
from exactq.quantized import Quantized


class Net(nn.Module):
    """A convolution, a depthwise one, an addition, a pool, two linear layers: every kind of line that a plan has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.fc1 = nn.Linear(64, 16)
        self.fc2 = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = F.max_pool2d(F.relu(x + self.depthwise(x)), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


def images(samples: int = 96, seed: int = 0) -> Indexed:
    """Three classes of noisy stripes, 1×8×8."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (samples,), generator=generator)
    stripes = torch.sin(torch.arange(8) * (labels[:, None] + 1)).reshape(samples, 1, 1, 8).expand(-1, 1, 8, 8)
    return replace(in_memory((stripes + 0.5 * torch.randn(samples, 1, 8, 8, generator=generator),), labels), size=32)


def float_graph(seed: int = 0) -> Graph:
    """The net with random weights that answer something, captured."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2.0)
    return flow.prepare(net, (torch.randn(2, 1, 8, 8),))


def quantized(
    weights: Format = INT4.narrow,
    observer: str = "minmax",
    *,
    target: str = "onnxruntime",
    isa: str = "",
    stays_float: str = "",
    multiplied: Format | None = None,
) -> Quantized:
    """The net on a target's grids, calibrated on the images."""
    rules = (Rule(Match(name=stays_float), "asked for by the test", stay_float=True),) if stays_float else ()
    recipe = Recipe("test", weights=weights, weight_observer=observer, rules=rules, multiplied=multiplied)
    target = f"{target}@{isa}" if isa else target
    return flow.quantize_graph(float_graph(), calibration=(b.inputs for b in images()), recipe=recipe, target=target)


__all__ = ["INT4", "INT8", "Net", "float_graph", "images", "quantized"]
