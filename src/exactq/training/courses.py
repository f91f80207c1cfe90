"""How long, how fast and with what: the settings of a training, and the rate of each step.

rate(t) = r · min(1, (t + 1)/R) · (1 + cos(π·t/T))/2 for step t of T, the first R = ⌈w·T⌉ of which rise, w the warm-up.

The rate is in units of each tensor: u is a weight's mean grid step, for that is what rounding sees (2-bit weights need larger
changes than 8-bit ones before any code changes), and folded normalisations, w' = w·γ/σ, leave layers of any size behind. AdamW
moves an element by about its rate, so its rate is r·u; SGD moves it by its rate times the gradient, which shrinks as the
tensor grows, so its rate is r·u². A model whose layer is scaled by c, and the next by 1/c, then trains alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exactq.errors import UsageError, unknown

WARMUP, _FASTEST = 0.05, 1000

OPTIMIZERS: dict[str, Callable[[Mapping[str, Tensor], Mapping[str, float]], torch.optim.Optimizer]] = {
    "adamw": lambda tensors, units: torch.optim.AdamW(_groups(tensors, units, power=1), weight_decay=0.0),
    "sgd": lambda tensors, units: torch.optim.SGD(_groups(tensors, units, power=2), momentum=0.9, nesterov=True),
}
"""Weights do not decay: behind a folded normalisation their size is the function, not a freedom of it."""


def _groups(tensors: Mapping[str, Tensor], units: Mapping[str, float], *, power: int) -> list[dict[str, Any]]:
    return [{"params": [tensor], "unit": units[name] ** power} for name, tensor in tensors.items()]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Nothing; the optimizer's next step has that rate, in the units of its tensors."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["unit"]


@dataclass(frozen=True)
class Course:
    """The settings of a training; the same ones, with the same data, give the same weights, bit for bit.

    `batch` holds for data that is fetched by index, streams bring their own. `rate` is the highest rate, in units of each
    tensor; `clip` is the largest norm of a gradient. `held_out` is the share of the data that is not trained on but
    chooses the best epoch; training ends early after `patience` epochs without a better one. `warmup` is the share of the steps
    in which the rate rises. `threads` are torch's while training: another number rounds sums differently. Raises `UsageError`.
    """

    epochs: int = 10
    batch: int = 64
    rate: float = 3e-3
    optimizer: str = "adamw"
    clip: float = 1.0
    held_out: float = 0.1
    patience: int | None = None
    warmup: float = WARMUP
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "threads", *(() if self.patience is None else ("patience",))):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it needs a whole number from 1 up")
        if not 0 < self.rate <= _FASTEST:
            raise UsageError(f"rate is {self.rate}; it needs a number above 0 and up to {_FASTEST}, in grid steps: like 0.003")
        if not 0 < self.clip < math.inf:
            raise UsageError(f"clip is {self.clip}; it needs a finite number above 0")
        if not 0 <= self.held_out < 1:
            raise UsageError(f"held_out is {self.held_out}; it needs a share from 0 up and below 1, like 0.1")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"warmup is {self.warmup}; it needs a share from 0 up and below 1, like {WARMUP}")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed is {self.seed}; it needs a whole number from 0 to {2**32 - 1}")
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)


def rate_at(step: int, steps: int, highest: float, warmup: float = WARMUP) -> float:
    """The rate of step number `step` (from 0) of `steps`.

    >>> [round(rate_at(t, 40, 1.0), 3) for t in (0, 1, 20, 39)]
    [0.5, 0.998, 0.5, 0.002]
    """
    rise = max(1, math.ceil(round(warmup * steps, 6)))  # 0.05·140 is 7.000000000000001
    return highest * min(1.0, (step + 1) / rise) * (1 + math.cos(math.pi * step / steps)) / 2
