"""What the stages of a run share: what all of them read, and the quantized model that passes from one to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exactq.datasets.splits import Dataset
from exactq.metrics import Metric
from exactq.quantized import Quantized
from exactq.runs.measurement import Budget, Run, word
from exactq.runs.workplace import Workplace
from exactq.talk import Talk


@dataclass(frozen=True)
class Job:
    """What all stages of a run read: the data, the float model as a function, the metric and the budget.

    `known` says that the model is trained: random weights have no accuracy to lose.
    """

    dataset: Dataset
    float_model: Run
    metric: Metric
    budget: Budget
    known: bool
    work: Workplace

    @property
    def talk(self) -> Talk:
        """How the run speaks."""
        return self.work.talk

    def verdict(self, facts: dict[str, Any]) -> str:
        """The verdict's word on what was measured."""
        return word(facts, self.budget, trained=self.known)


@dataclass(frozen=True)
class Candidate:
    """A quantized model with its artifact, and what was measured of it, as plain data."""

    quantized: Quantized
    artifact: bytes
    facts: dict[str, Any]
