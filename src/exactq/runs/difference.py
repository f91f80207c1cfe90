"""What `exactq diff` does: run folders, and modules of Python files, beside each other on one's data or other data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exactq import pythonfile
from exactq.datasets.splits import Dataset
from exactq.difference import Diff, Execution, diff, execution
from exactq.errors import UsageError
from exactq.flow import executed
from exactq.graphs.graph import Graph
from exactq.runs.folder import Saved, open_run
from exactq.runs.measurement import check_evaluation
from exactq.runs.wishes import check_seed
from exactq.sources.resolve import quantized_source
from exactq.talk import SILENT, Talk

ALONE, BESIDE = ("qdq", "runtime"), ("emulator", "emulator")
"""How one model is executed twice, and how two models are, where nothing else is wished."""


@dataclass(frozen=True, eq=False)
class _Side:
    """One side as it was named: a run, or a module that runs itself, captured on two samples of the data."""

    given: Saved | Execution
    dataset: Dataset

    def execution(self, way: str) -> Execution:
        """The side, executed so; a module knows one way."""
        if isinstance(self.given, Execution):
            return self.given
        return execution(self.given.quantized, way, artifact=self.given.artifact)

    @property
    def graph(self) -> Graph:
        """The graph whose inputs the data must fit."""
        return self.given.graph if isinstance(self.given, Execution) else self.given.quantized.float_graph


def diff_runs(
    models: Sequence[str],
    ways: Sequence[str] = (),
    *,
    data: str | None = None,
    input_shape: str | None = None,
    inputs: int = 64,
    seed: int = 0,
    talk: Talk = SILENT,
) -> Diff:
    """Where two executions part: of one run folder in two `ways`, or of two sides, on the first one's data or on `data`.

    A side is a run folder, or `file.py:factory`, whose module runs itself, float or prepared or converted by others.
    Raises `UsageError` for other numbers of sides or ways, and as `open_run` does.
    """
    if len(models) not in (1, 2):
        raise UsageError(f"{len(models)} runs cannot be compared: give one, executed in two ways, or two")
    if len(ways) not in (0, 2):
        raise UsageError(f"--as is given {len(ways)} times: give it twice, first for the one side and then for the other")
    if inputs < 1:
        raise UsageError(f"--inputs is {inputs}; at least one input is needed, 64 are the default")
    check_seed(seed)
    if len(models) == 1 and pythonfile.is_named(models[0]):
        raise UsageError(f"{models[0]} runs itself in one way: name a second side, a run folder or another file.py:factory")
    chosen = ways or (ALONE if len(models) == 1 else BESIDE)
    if len(models) == 1 and chosen[0] == chosen[1]:
        raise UsageError(f"{models[0]} as `{chosen[0]}` beside itself: give two ways, or two runs")
    sides = [_side(model, data, input_shape, seed, talk) for model in models]
    first, second = (side.execution(way) for side, way in zip((sides * 2)[:2], chosen, strict=True))
    dataset = next((s.dataset for s in sides if isinstance(s.given, Saved)), sides[0].dataset)
    check_evaluation(dataset, sides[0].graph)
    with talk.track("diff", inputs) as advance:
        found = diff(first, second, (b.inputs for b in dataset.evaluation), inputs=inputs, progress=advance)
    for remark in dataset.remarks():
        talk.say(f"note       {remark}")
    return found


def _side(model: str, data: str | None, input_shape: str | None, seed: int, talk: Talk) -> _Side:
    if pythonfile.is_named(model):
        source = quantized_source(model, data=data, input_shape=input_shape, seed=seed)
        return _Side(executed(source.module, source.example), source.dataset)
    saved = open_run(Path(model), data=data, talk=talk)
    return _Side(saved, saved.dataset(seed=seed))
