"""A layer that the plan leaves float is one in the session that a user runs, too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from exactq import flow
from exactq.errors import UsageError
from exactq.plans.plan import Float, Own
from exactq.plans.recipes import Match, Recipe, Rule
from exactq.verification import verify

pytestmark = pytest.mark.runtime


class Chain(nn.Module):
    """Three convolutions with their ReLU, a shortcut and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.fc1, self.fc2 = nn.Linear(8 * 16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        z = torch.relu(self.b(y))
        z = torch.relu(self.c(z) + y)
        return self.fc2(torch.relu(self.fc1(z.flatten(1))))


def kept_float(name: str) -> Recipe:
    return Recipe("mine", rules=(Rule(Match(name=name), "it is tender", stay_float=True),))


@pytest.mark.parametrize(
    ("name", "kernel", "others"),
    [("b", "Conv", {"QLinearConv": 2, "QGemm": 2}), ("c", "Conv", {"QLinearConv": 2}), ("fc1", "Gemm", {"QGemm": 1})],
)
def test_a_layer_kept_float_runs_in_float_and_what_follows_is_verified(name: str, kernel: str, others: dict[str, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 4, 4)
    made = flow.quantize(Chain().eval(), (x[:2],), calibration=[x], recipe=kept_float(name))
    verdict = verify(made, [(x,)])
    assert verdict.equal
    floats = [n for op, n in verdict.operators.items() if op in (kernel, f"Fused{kernel}")]
    assert sum(floats) == 1
    assert {op: verdict.operators[op] for op in others} == others
    coverage = made.coverage()
    assert coverage is not None
    assert 0 < coverage < 1
    assert any("float kernels" in text for text in verdict.unverified)


def test_a_relu_behind_a_float_layer_is_rounded_once() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, 4)
    plan = flow.plan(Chain().eval(), (x,), recipe=kept_float("b"))
    assert isinstance(plan.slots["b"], Float)
    assert isinstance(plan.slots["relu_1"], Own)


class Sum(nn.Module):
    """A bare sum between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) + x)


@pytest.mark.parametrize(
    ("net", "words"),
    [(Chain(), "`add` is float between codes, and onnxruntime makes it"), (Sum(), "`add` cannot stay float: what it reads")],
    ids=["behind it a relu", "bare"],
)
def test_an_operator_between_integers_cannot_be_kept_float(net: nn.Module, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        flow.plan(net.eval(), (torch.randn(2, 3, 4, 4),), recipe=kept_float("add"))
