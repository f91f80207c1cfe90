"""Settings that exist are valid, and the rate rises and falls as the formula says."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from exactq.errors import UsageError
from exactq.training.courses import OPTIMIZERS, Course, rate_at, set_rate


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21, 400])
def test_the_rate_rises_over_a_twentieth_and_falls_as_a_cosine(steps: int) -> None:
    rates = [rate_at(step, steps, 2.0) for step in range(steps)]
    rise = math.ceil(steps / 20)
    assert all(0 < rate <= 2.0 for rate in rates)
    assert all(a < b for a, b in pairwise(rates[:rise]))
    assert all(a > b for a, b in pairwise(rates[rise - 1 :]))
    assert rates[steps // 2] == pytest.approx(1 + math.cos(math.pi * (steps // 2) / steps))


@pytest.mark.parametrize(("warmup", "rise"), [(0.0, 1), (0.05, 7), (0.5, 70), (0.99, 139)])
def test_the_warm_up_is_a_share_of_the_steps(warmup: float, rise: int) -> None:
    factors = [rate_at(step, 140, 1.0, warmup) / ((1 + math.cos(math.pi * step / 140)) / 2) for step in range(140)]
    assert factors == pytest.approx([min(1.0, (step + 1) / rise) for step in range(140)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it needs a whole number from 1 up"),
        ({"batch": 0}, "batch is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"rate": 0.0}, "rate is 0.0; it needs a number above 0 and up to 1000, in grid steps"),
        ({"rate": math.nan}, "rate is nan"),
        ({"rate": 1001.0}, "rate is 1001.0"),
        ({"clip": math.inf}, "clip is inf"),
        ({"held_out": 1.0}, "held_out is 1.0; it needs a share from 0 up and below 1"),
        ({"warmup": 1.0}, "warmup is 1.0; it needs a share from 0 up and below 1, like 0.05"),
        ({"warmup": -0.1}, "warmup is -0.1"),
        ({"held_out": -0.1}, "held_out is -0.1"),
        ({"seed": -1}, "seed is -1"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Course(**wrong)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_layer_scaled_up_takes_steps_scaled_up(name: str) -> None:
    """The same descent in other units: f(w) = loss(w/c) from w·c, with the unit c."""
    paths = []
    for scale in (1.0, 64.0):
        tensors = {"w": (torch.arange(1.0, 5.0) * scale).requires_grad_()}
        optimizer = OPTIMIZERS[name](tensors, {"w": scale})
        set_rate(optimizer, 0.1)
        for _ in range(5):
            optimizer.zero_grad()
            torch.autograd.backward((tensors["w"] / scale - 2).square().sum())
            optimizer.step()
        paths.append(tensors["w"].detach() / scale)
    torch.testing.assert_close(paths[0], paths[1], rtol=1e-4, atol=1e-4)  # AdamW's epsilon, 1e-8 beside the gradient
    assert not torch.equal(paths[0], torch.arange(1.0, 5.0))
