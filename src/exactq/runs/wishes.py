"""What a run is asked for, checked before anything slow begins."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

from exactq import flow
from exactq.datasets.catalog import CALIBRATION
from exactq.errors import UsageError, unknown
from exactq.metrics import metric_named
from exactq.plans.plan import Plan
from exactq.plans.recipes import recipe_named
from exactq.targets import target_named
from exactq.training.methods import METHODS
from exactq.training.objectives import OBJECTIVES

MAX_DROP = 0.005
RECIPE = "w8a8"
METHOD = "straight_through"
TRAIN = {
    "auto": "fine-tune where the accuracy budget is exceeded",
    "never": "leave the model as it was quantized",
    "always": "fine-tune whatever the budget says",
}
TRAIN_SAMPLES = 8192
"""As many samples as some minutes on a few cores allow; low-bit networks won back most of their loss on fewer."""
SEEDS = 2**32


@dataclass(frozen=True)
class Wishes:
    """What `exactq run`, `quantize` and `plan` are asked for; the names are those of the flags.

    Without `recipe` and `plan` the recipe is `w8a8`. Raises `UsageError` for numbers and names that do not exist.
    """

    model: str
    weights: str | None = None
    data: str | None = None
    target: str = "onnxruntime"
    recipe: str | None = None
    plan: str | None = None
    metric: str | None = None
    max_drop: float = MAX_DROP
    max_error: float | None = None
    input_shape: str | None = None
    calibration: int = CALIBRATION
    seed: int = 0
    out: str | None = None
    trust: bool = False
    random_weights: bool = False
    train: str = "auto"
    epochs: int | None = None
    train_samples: int = TRAIN_SAMPLES
    objective: str | None = None
    method: str = METHOD

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise UsageError(f"--max-drop is {self.max_drop}; it needs a number of metric points from 0 up, like {MAX_DROP}")
        if self.max_error is not None and not (math.isfinite(self.max_error) and self.max_error >= 0):
            raise UsageError(f"--max-error is {self.max_error}; it needs a mean absolute output error from 0 up, like 0.1")
        if self.calibration < 1:
            raise UsageError(
                f"--calibration is {self.calibration}; at least one sample is needed, {CALIBRATION} are the default"
            )
        check_seed(self.seed)
        if self.train not in TRAIN:
            raise unknown("answer to --train", self.train, TRAIN)
        for flag, count, like in (("--epochs", self.epochs, 10), ("--train-samples", self.train_samples, TRAIN_SAMPLES)):
            if count is not None and count < 1:
                raise UsageError(f"{flag} is {count}; it needs a whole number from 1 up, like {like}")
        if self.objective is not None and self.objective not in OBJECTIVES:
            raise unknown("objective", self.objective, OBJECTIVES)
        if self.method not in METHODS:
            raise unknown("method of training", self.method, METHODS)
        target_named(self.target)
        if self.recipe is not None:
            recipe_named(self.recipe)
        if self.metric is not None:
            metric_named(self.metric)
        if self.recipe is not None and self.plan is not None:
            raise UsageError(
                f"--recipe {self.recipe} and --plan {self.plan} exclude each other: a plan is made from its recipe"
            )

    def given_plan(self) -> Plan | None:
        """The plan of the file `plan`, or None; raises `UsageError` where it is for another target than the one asked for."""
        if self.plan is None:
            return None
        plan = flow.given_plan(self.plan)
        wanted, isa = target_named(self.target)
        if plan.target != wanted.name or ("@" in self.target and plan.isa != isa):
            raise UsageError(
                f"the plan {self.plan} is for {plan.target}@{plan.isa}, and --target says {self.target}: change one of them"
            )
        target_named(f"{plan.target}@{plan.isa}")
        return plan

    @property
    def folder(self) -> Path:
        """Where the run goes: `out`, or `runs/<model>-<target>`."""
        if self.out is not None:
            return Path(self.out)
        last = self.model.rpartition("/")[2].replace(".py:", "-")
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in last)
        return Path("runs", f"{name}-{self.target.partition('@')[0]}")

    @property
    def command(self) -> str:
        """The command line that asks for the same without being asked: what is not as it is by default."""
        parts = ["exactq", "run", self.model]
        for given in fields(self)[1:]:
            value = getattr(self, given.name)
            if value != given.default:
                parts += [f"--{given.name.replace('_', '-')}", *([] if value is True else [str(value)])]
        return shlex.join([*parts, "--yes"])


def check_seed(seed: int) -> None:
    """Nothing, or `UsageError` for a seed that not every generator takes."""
    if not 0 <= seed < SEEDS:
        raise UsageError(f"--seed is {seed}; it needs a whole number from 0 to {SEEDS - 1}")


def epochs(text: str) -> int:
    """The number of epochs that `text` writes. Raises `UsageError`."""
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"'{text}' is no number of epochs: a whole number from 1 up is needed, like 10")
    return int(text)
