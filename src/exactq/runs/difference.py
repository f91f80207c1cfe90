"""What `exactq diff` does: the models of one or two run folders, each executed in some way, on one run's data or other data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exactq.difference import Diff, Execution, diff, execution
from exactq.errors import UsageError
from exactq.runs.folder import Saved, open_run
from exactq.runs.measurement import check_evaluation
from exactq.runs.wishes import check_seed
from exactq.talk import SILENT, Talk

ALONE, BESIDE = ("qdq", "runtime"), ("emulator", "emulator")
"""How one model is executed twice, and how two models are, where nothing else is wished."""


def diff_runs(
    folders: Sequence[str | Path],
    ways: Sequence[str] = (),
    *,
    data: str | None = None,
    inputs: int = 64,
    seed: int = 0,
    talk: Talk = SILENT,
) -> Diff:
    """Where two executions part: of one run folder in two `ways`, or of two, on the first one's data or on `data`.

    Raises `UsageError` for other numbers of folders or ways, and as `open_run` does.
    """
    if len(folders) not in (1, 2):
        raise UsageError(f"{len(folders)} runs cannot be compared: give one, executed in two ways, or two")
    if len(ways) not in (0, 2):
        raise UsageError(f"--as is given {len(ways)} times: give it twice, first for the one side and then for the other")
    if inputs < 1:
        raise UsageError(f"--inputs is {inputs}; at least one input is needed, 64 are the default")
    check_seed(seed)
    saved = [open_run(Path(folder), data=data, talk=talk) for folder in folders]
    chosen = ways or (ALONE if len(saved) == 1 else BESIDE)
    if len(saved) == 1 and chosen[0] == chosen[1]:
        raise UsageError(f"{folders[0]} as `{chosen[0]}` beside itself: give two ways, or two runs")
    first, second = (_execution(run, way) for run, way in zip((saved * 2)[:2], chosen, strict=True))
    dataset = saved[0].dataset(seed=seed)
    check_evaluation(dataset, saved[0].quantized.float_graph)
    with talk.track("diff", inputs) as advance:
        found = diff(first, second, (b.inputs for b in dataset.evaluation), inputs=inputs, progress=advance)
    for remark in dataset.remarks():
        talk.say(f"note       {remark}")
    return found


def _execution(saved: Saved, way: str) -> Execution:
    return execution(saved.quantized, way, artifact=saved.artifact)
