"""What `exactq explain` does: the model of a run folder on one sample of the run's own data, or of other data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from exactq.datasets.catalog import load
from exactq.errors import DataError, UsageError
from exactq.explanation import Biases, Explanation, explain, explain_biases
from exactq.explanation.element import SHOWN
from exactq.runs.folder import Saved, open_model, open_run
from exactq.runs.measurement import check_evaluation
from exactq.runs.wishes import check_seed
from exactq.talk import SILENT, Talk


def explain_run(
    folder: str | Path,
    node: str,
    at: Sequence[int],
    *,
    data: str | None = None,
    number: int = 0,
    isa: str | None = None,
    terms: int = SHOWN,
    seed: int = 0,
    talk: Talk = SILENT,
) -> Explanation:
    """The code of `node` at `at` on sample `number` of the run's evaluation data, or of `data`.

    The sample is a batch of one, so `at` begins with 0; of a model that only takes batches of a fixed size it is the whole
    batch that holds it. A run whose data came from a Python file needs `data`: nothing that a folder names is executed unasked.
    """
    if number < 0:
        raise UsageError(f"--input is {number}; samples are counted from 0")
    check_seed(seed)
    saved = open_run(Path(folder), data=data)
    for name in saved.changed:
        talk.say(f"note       {name} is not the file that the run wrote")
    return explain(saved.quantized, node, at, _sample(saved, number, seed), isa=isa, terms=terms)


def explain_run_biases(folder: str | Path, node: str | None = None, *, isa: str | None = None) -> Biases:
    """How the biases of a run's layers are held, or those of one layer."""
    return explain_biases(open_model(Path(folder)), node, isa=isa)


def _sample(saved: Saved, number: int, seed: int) -> tuple[Tensor, ...]:
    """The sample as a batch."""
    graph = saved.quantized.float_graph
    names, shapes = tuple(i.name for i in graph.inputs), tuple(i.shape[1:] for i in graph.inputs)
    dataset = load(saved.data, calibration=1, seed=seed, inputs=names, shapes=shapes)
    check_evaluation(dataset, graph)
    before = 0
    for batch in dataset.evaluation:
        within, size = number - before, len(batch.inputs[0])
        if within < size:
            free = all(i.batch for i in graph.inputs)
            return tuple(x[within : within + 1] for x in batch.inputs) if free else batch.inputs
        before += size
    raise DataError(f"--input is {number}, but `{dataset.name}` has {before} samples to evaluate: take 0..{before - 1}")
