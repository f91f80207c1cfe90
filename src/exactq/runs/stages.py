"""The stages between a plan and a whole run, each kept until the run is whole: quantized, measured, tuned, measured again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exactq import cache, flow, pythonfile
from exactq.datasets.splits import Dataset, Indexed, Split
from exactq.errors import DataError, ModelError
from exactq.graphs import store
from exactq.graphs.graph import Graph
from exactq.metrics import Metric, measure
from exactq.plans import document
from exactq.plans.plan import Plan
from exactq.quantized import Quantized, load
from exactq.runs.folder import write_json
from exactq.runs.measurement import Budget, Run, measured, samples, word
from exactq.runs.tuning import Training, float_twin, trained
from exactq.runs.workplace import Workplace
from exactq.talk import Talk

FACTS = "facts.json"


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


def quantized(work: Workplace, dataset: Dataset, graph: Graph, plan: Plan) -> Quantized:
    """The graph calibrated and quantized by the plan."""
    text, tensors = store.dumps(graph)
    key = cache.key(text, tensors, document.to_yaml(plan), _seen(dataset.calibration), dataset.name)

    def make(folder: Path) -> None:
        _refuse_constant(dataset)
        with work.talk.track("calibrate", samples(dataset.calibration)) as advance:
            batches = (b.inputs for b in dataset.calibration)
            flow.quantize_graph(graph, calibration=batches, plan=plan, progress=advance).save(folder)

    return work.stage("quantized", key, dataset, make, load)


def candidate(job: Job, made: Quantized, stage: str) -> Candidate:
    """The quantized model measured, as the stage of that name."""
    with job.talk.track("export", None):
        artifact = made.artifact()
    runtime = (made.plan.target, made.plan.isa, made.target.version, made.target.detect_isa())
    data = (job.dataset.name, _seen(job.dataset.evaluation), job.metric.name, _code(job.metric.name))
    key = cache.key(artifact, *store.dumps(made.float_graph), *runtime, *data)

    def make(folder: Path) -> None:
        facts = measured(made, job.float_model, job.dataset, job.metric, artifact, job.talk)
        write_json(folder / FACTS, facts)

    def read(folder: Path) -> dict[str, Any]:
        try:
            return json.loads((folder / FACTS).read_bytes())
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder} is damaged: {error}") from error

    return Candidate(made, artifact, job.work.stage(stage, key, job.dataset, make, read))


def tuned(job: Job, first: Candidate, training: Training) -> tuple[Candidate, dict[str, Any]]:
    """The better of `first` and its fine-tuned form on the evaluation data, and the facts of the training.

    The epoch was chosen on training data that was held out. `helped` says whether the fine-tuned form is the better one,
    `metric` is its, and `float_tuned` that of the float model after the same schedule, where that was needed.
    """
    made = trained(job.work, first.quantized, first.artifact, training, job.dataset, job.metric, job.float_model)
    facts = made.facts | {"helped": False, "metric": None, "float_tuned": None}
    if not made.facts["best"]:
        return first, facts
    second = candidate(job, made.quantized, "tuned-measured")
    twin = float_twin(job.work, first.quantized, first.artifact, training, job.dataset, job.metric, job.float_model)
    if twin is not None:
        facts["float_tuned"] = measure(job.metric, twin, job.dataset.evaluation, reference=job.float_model)
    facts |= {"metric": second.facts["values"]["emulated"], "helped": _better(job, first.facts, second.facts)}
    return (second if facts["helped"] else first), facts


def _better(job: Job, before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether fine-tuning helped: within the budget where it was not, or a better metric; then a smaller error of outputs."""
    over = [job.verdict(facts) == "over_budget" for facts in (before, after)]
    if over[0] != over[1]:
        return over[0]
    values = [facts["values"]["deployed"] for facts in (before, after)]
    if values[0] != values[1]:
        return bool(values[1] > values[0])
    errors = [facts["mean_error"] for facts in (before, after)]
    return errors[1] is not None and (errors[0] is None or errors[1] < errors[0])


def _seen(split: Split) -> str:
    """What stands for the data in a key: the number of samples, and the first batch."""
    first = next(iter(split))
    tensors = {f"input {position}": x for position, x in enumerate(first.inputs)}
    tensors |= {"labels": first.labels} if first.labels is not None else {}
    return f"{split.samples if isinstance(split, Indexed) else split.limit} {cache.digest(tensors)}"


def _code(spec: str) -> bytes:
    """The text of the Python file that a name speaks of; empty for a name that is built in."""
    return Path(spec.rpartition(":")[0]).read_bytes() if pythonfile.is_named(spec) else b""


def _refuse_constant(dataset: Dataset) -> None:
    first = dataset.first.inputs
    for position, x in enumerate(first):
        if x.is_floating_point() and x.numel() > 1 and bool((x == x.flatten()[0]).all()) and _all_same(dataset, position):
            value = float(x.flatten()[0])
            raise DataError(
                f"every calibration value of input {position} is {value:g}: a range cannot be learned from constant data; "
                "calibrate with real inputs"
            )


def _all_same(dataset: Dataset, position: int) -> bool:
    value = dataset.first.inputs[position].flatten()[0]
    return all(bool((b.inputs[position] == value).all()) for b in dataset.calibration)
