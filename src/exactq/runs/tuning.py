"""Fine-tuning as a stage of a run: on what, for how long, what it brought, and whether that is owed to the data alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from exactq import cache
from exactq.datasets.splits import Dataset, Indexed, Split, fingerprint
from exactq.graphs.programs import program
from exactq.metrics import Run, measure
from exactq.quantized import Quantized, load
from exactq.runs.folder import read_json, write_json
from exactq.runs.jobs import Candidate, Job
from exactq.runs.wishes import Wishes
from exactq.traces import walk
from exactq.training.courses import Course
from exactq.training.methods import method_named
from exactq.training.objectives import LABELS, MATCHING, OBJECTIVES, Objective
from exactq.training.samples import batches_in, divided
from exactq.training.simulation import Method
from exactq.training.tuning import Diverged, Moment, tune
from exactq.training.unquantized import unquantized

PASSES = 16384
"""How many samples all epochs see together, where nobody says: two epochs of as many as are taken, ten of a small set."""
EPOCHS = range(2, 11)
STREAMED_EPOCHS = 3
PATIENCE = 3
FACTS = "training.json"


@dataclass(frozen=True)
class Training:
    """What is trained on, towards what, and how; `source` says which of the dataset's samples these are.

    `method` is a name of `training.methods.METHODS`.
    """

    split: Split
    source: str
    objective: Objective
    course: Course
    method: str

    @property
    def samples(self) -> int | None:
        """How many samples there are, the held-out ones included; None for a stream."""
        return self.split.samples if isinstance(self.split, Indexed) else None


@dataclass(frozen=True)
class Trained:
    """A fine-tuned model, and what its training was, as plain data; `failed` in there is why it is the model as it was."""

    quantized: Quantized
    facts: dict[str, Any]


def training_for(asked: Wishes, dataset: Dataset, *, outputs_matter: bool) -> Training:
    """The training of a run: as asked, and for the rest what its data allows.

    Without training data the calibration samples are trained on: distillation needs no labels. `outputs_matter` says that
    the numbers of the outputs count and not their order, as a budget for the output error does.
    """
    whole, source = (dataset.train, "training") if dataset.train is not None else (dataset.calibration, "calibration")
    chosen = whole.shuffled(asked.seed) if isinstance(whole, Indexed) else whole
    split = chosen.first(asked.train_samples)
    if asked.objective is not None:
        objective = OBJECTIVES[asked.objective]
    else:
        objective = MATCHING if outputs_matter else OBJECTIVES["distillation"]
    epochs = asked.epochs or _epochs(split)
    course = Course(epochs=epochs, patience=PATIENCE, seed=asked.seed, threads=torch.get_num_threads())
    return Training(split, source, objective, course, asked.method)


def _epochs(split: Split) -> int:
    if not isinstance(split, Indexed):
        return STREAMED_EPOCHS
    return min(max(-(-PASSES // split.samples), EPOCHS[0]), EPOCHS[-1])


def trained(job: Job, first: Candidate, training: Training) -> Trained:
    """The model of `first` fine-tuned, as a stage of the run.

    A training that diverges is no error of the run: the model comes back as it was, and the facts say why.
    """
    method = method_named(training.method, first.quantized.lower)
    return _stage(job, first, training, method, name="tuned", bar="train")


def float_twin(job: Job, first: Candidate, training: Training) -> Run | None:
    """The float model after the same schedule, where labels teach something about the data that the float model did not know.

    None where the objective is the float model itself: it cannot get better than what it is held against.
    """
    if training.objective is not LABELS:
        return None
    twin = program(_stage(job, first, training, unquantized, name="float-tuned", bar="train float").quantized.float_graph)
    return lambda inputs: walk(twin, inputs)


def _stage(job: Job, first: Candidate, training: Training, method: Method, *, name: str, bar: str) -> Trained:
    course, split, metric, work = training.course, training.split, job.metric, job.work
    weights = cache.digest(first.quantized.float_graph.constants)
    key = cache.key(
        training.method, first.artifact, weights, repr(course), training.objective.name, metric.name, fingerprint(split)
    )

    def watch(model: Run, held: Split) -> float:
        return measure(metric, model, held, reference=job.float_model)

    def make(folder: Path) -> None:
        failed, history, best, made = None, [], 0, first.quantized
        with work.talk.track(bar, _steps(training)) as advance:
            try:
                tuned = tune(
                    first.quantized,
                    split,
                    course=course,
                    objective=training.objective,
                    method=method,
                    watch=watch,
                    progress=_counted(advance, metric.name),
                    state_path=work.file(f"{name}-state", key, ".safetensors"),
                )
                made, best, history = tuned.quantized, tuned.best, [asdict(epoch) for epoch in tuned.history]
            except Diverged as error:
                failed = str(error)
        made.save(folder)
        described = {"method": training.method, "objective": training.objective.name, "data": training.source}
        settings = {"epochs": course.epochs, "batch": course.batch, "rate": course.rate, "held_out": course.held_out}
        facts = {**described, "samples": training.samples, **settings, "best": best, "history": history, "failed": failed}
        write_json(folder / FACTS, facts)

    return work.stage(name, key, job.dataset, make, lambda folder: Trained(load(folder), read_json(folder / FACTS)))


def _steps(training: Training) -> int | None:
    """How many steps the training has if it does not end early, where that is known before a stream was gone through."""
    if not isinstance(training.split, Indexed):
        return None
    course = training.course
    return batches_in(divided(training.split, course.held_out, course.seed)[0], course.batch) * course.epochs


def _counted(advance: Callable[..., None], metric: str) -> Callable[[Moment], None]:
    """What tells a progress bar of each moment: how many steps it brought, the loss, and the last epoch's metric."""
    at, measured = 0, ""

    def told(moment: Moment) -> None:
        nonlocal at, measured
        if moment.metric is not None:
            measured = f", {metric} {moment.metric:.4f}"
        advance(moment.step - at, f"epoch {moment.epoch}, loss {moment.loss:.4g}{measured}")
        at = moment.step

    return told
