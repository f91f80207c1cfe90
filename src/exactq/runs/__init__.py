"""One run: the whole job from a model's name to a folder with a verified artifact, and what was measured on the way.

Its stages are kept until the run is whole, so a run that was killed goes on with the first one that is missing.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from exactq import __version__, reports
from exactq.errors import UsageError
from exactq.graphs import store
from exactq.graphs.graph import Graph
from exactq.metrics import check_fit, default_metric, metric_named
from exactq.plans.plan import Plan, dynamic_layers
from exactq.quantized import Quantized
from exactq.reports.folder import METRICS, VERIFY
from exactq.runs.folder import check_replaceable, open_model, open_run, write_json, write_manifest
from exactq.runs.jobs import Candidate, Job
from exactq.runs.measurement import Budget, check_evaluation, costs, float_run, notes, sizes
from exactq.runs.preparation import agreed_plan, optimized, planned, traced
from exactq.runs.questions import NO, YES, agreed, given
from exactq.runs.stages import candidate, quantized, tuned
from exactq.runs.tables import plan_rows, short_plan_rows
from exactq.runs.tuning import Training, training_for
from exactq.runs.wishes import Wishes, check_seed, epochs
from exactq.runs.workplace import working
from exactq.sources.resolve import Source
from exactq.talk import SILENT, Talk
from exactq.training.methods import SAYS
from exactq.verification import Verdict, verify

__all__ = ["Wishes", "open_model", "plan", "plan_rows", "quantize", "run", "short_plan_rows", "verify_run", "write_run"]

TUNABLE = ("ok", "over_budget")
"""The verdicts of a model that fine-tuning could make better."""


def run(model: str, *, talk: Talk = SILENT, **wishes: Any) -> dict[str, Any]:
    """Model -> run folder, and the facts as plain data (the JSON of `exactq run`); `wishes` are the flags by name.

    The folder appears whole at the end or not at all; one that holds an earlier run is replaced. A run that was killed is
    gone on with by asking for the same again. `talk.ask` is asked before each step. Raises the errors of `exactq.errors`.
    """
    asked = Wishes(model, **wishes)
    asked.given_plan()
    check_replaceable(asked.folder)
    with working(asked.folder, talk) as work:
        source, captured = traced(asked, talk)
        graph = optimized(captured, talk)
        check_evaluation(source.dataset, graph)
        metric = metric_named(asked.metric) if asked.metric is not None else default_metric(source.dataset)
        check_fit(metric, source.dataset, float_run(source.module), whole=not all(i.batch for i in graph.inputs))
        asked, chosen = agreed_plan(asked, graph, talk)
        budget = Budget(asked.max_drop, asked.max_error)
        job = Job(source.dataset, float_run(source.module), metric, budget, source.trained, work)
        first = candidate(job, quantized(work, source.dataset, graph, chosen), "measured")
        asked, training = _training(asked, job, first)
        best, trained = (first, None) if training is None else tuned(job, first, training)
        agreed(talk, "export", f"Write the run to {asked.folder}?", yes="the artifact, plan, graphs, figures and report")
        facts = _named_facts(source, best.quantized) | _measured_facts(job, first, best, trained)
        facts |= costs(best.quantized, best.artifact, source.dataset.first.inputs, talk)
        work.publish(lambda folder: write_run(folder, asked, source, best.quantized, best.artifact, facts))
    return {"out": str(asked.folder), "command": asked.command, **facts}


def quantize(model: str, *, talk: Talk = SILENT, **wishes: Any) -> dict[str, Any]:
    """Model -> folder with plan, graphs and artifact, without measuring anything; what `exactq quantize` does."""
    asked = Wishes(model, **wishes)
    asked.given_plan()
    check_replaceable(asked.folder)
    with working(asked.folder, talk) as work:
        source, captured = traced(asked, talk)
        graph = optimized(captured, talk)
        asked, chosen = agreed_plan(asked, graph, talk)
        made = quantized(work, source.dataset, graph, chosen)
        with talk.track("export", None):
            artifact = made.artifact()
        facts = _named_facts(source, made) | {
            "size": sizes(made, artifact),
            "notes": notes(made) + work.remarks(source.dataset),
        }
        work.publish(lambda folder: write_run(folder, asked, source, made, artifact, None))
    return {"out": str(asked.folder), **facts}


def plan(model: str, *, talk: Talk = SILENT, **wishes: Any) -> tuple[Plan, Graph]:
    """The plan for a model's name, and the graph it speaks of; what `exactq plan` does."""
    asked = Wishes(model, **wishes)
    graph = optimized(traced(asked, talk)[1], talk)
    return planned(asked, graph), graph


def verify_run(folder: str | Path, *, data: str | None = None, inputs: int = 64, seed: int = 0, talk: Talk = SILENT) -> Verdict:
    """The artifact of a run folder on this machine's runtime beside the emulator, on the run's data or on `data`.

    A run whose data came from a Python file needs `data`: nothing that a folder names is executed unasked.
    """
    if inputs < 1:
        raise UsageError(f"--inputs is {inputs}; at least one input is needed, 64 are the default")
    check_seed(seed)
    saved = open_run(Path(folder), data=data, talk=talk)
    dataset = saved.dataset(seed=seed)
    check_evaluation(dataset, saved.quantized.float_graph)
    with talk.track("verify", inputs) as advance:
        batches = (b.inputs for b in dataset.evaluation)
        verdict = verify(
            saved.quantized, batches, runtime=saved.quantized.target.open(saved.artifact), inputs=inputs, progress=advance
        )
    for remark in dataset.remarks():
        talk.say(f"note       {remark}")
    return verdict


def _training(asked: Wishes, job: Job, first: Candidate) -> tuple[Wishes, Training | None]:
    """The training that is wanted after what was measured, None for none, and the wishes with the answer in them."""
    word, values, talk = job.verdict(first.facts), first.facts["values"], job.talk
    figures = f"{job.metric.name} float {values['float']:.4f}, quantized {values['deployed']:.4f}"
    talk.say(f"measured   {figures}: {word.replace('_', ' ')}")
    if word not in TUNABLE or asked.train != "always" and dynamic_layers(first.quantized.plan):
        return asked, None
    wanted = {"auto": word == "over_budget", "never": False, "always": True}[asked.train]
    yes, no = "train on the plan's grids, and keep the better model", "leave it as it is quantized"
    text = "Fine-tune?" if word == "ok" else "The budget is exceeded. Fine-tune?"
    train = agreed(talk, "fine-tune", text, yes=yes, no=no, default=YES if wanted else NO)
    if train != wanted:
        asked = replace(asked, train="always" if train else "never")
    if not train:
        return asked, None
    error = first.facts["mean_error"]
    too_far = asked.max_error is not None and (error is None or error > asked.max_error)
    training = training_for(asked, job.dataset, outputs_matter=too_far)
    chosen = int(given(talk, "fine-tune", "How many epochs, at most?", str(training.course.epochs), epochs))
    if chosen != training.course.epochs:
        asked = replace(asked, epochs=chosen)
        training = training_for(asked, job.dataset, outputs_matter=too_far)
    count = "a stream of" if training.samples is None else f"{training.samples:,}"
    way = SAYS[training.method]
    talk.say(f"train      {training.objective.name} on {count} {training.source} samples, {chosen} epochs at most, by {way}")
    return asked, training


def _named_facts(source: Source, made: Quantized) -> dict[str, Any]:
    plan = made.plan
    return {"model": source.label, "target": f"{plan.target}@{plan.isa}", "recipe": plan.recipe}


def _measured_facts(job: Job, first: Candidate, best: Candidate, trained: dict[str, Any] | None) -> dict[str, Any]:
    """What was measured of the deployed model, with what it was before a training beside it."""
    values = best.facts["values"]
    metric = {"name": job.metric.name, "float": values["float"], "ptq": first.facts["values"]["emulated"]}
    metric |= {"qat": None if trained is None else trained["metric"], "deployed": values["deployed"]}
    return {
        **{key: value for key, value in best.facts.items() if key not in ("values", "metric")},
        "metric": metric,
        "training": trained,
        "notes": best.facts["notes"] + job.work.remarks(job.dataset),
        "ptq_layers": first.facts["layers"] if best is not first else [],
        "budget": {"max_drop": job.budget.drop, "max_error": job.budget.error},
        "verdict": job.verdict(best.facts),
    }


def write_run(
    folder: Path, asked: Wishes, source: Source, made: Quantized, artifact: bytes, facts: dict[str, Any] | None
) -> None:
    """Fill the folder of a whole run; `facts` None for one that measured nothing."""
    made.save(folder)
    store.write(folder / f"model{made.target.suffix}", artifact)
    if facts is not None:
        write_json(folder / METRICS, {key: value for key, value in facts.items() if key != "verify"})
        write_json(folder / VERIFY, facts["verify"])
    write_manifest(
        folder,
        {
            "exactq": __version__,
            "model": asked.model,
            "data": source.dataset.name if asked.data is None else asked.data,
            "artifact": f"model{made.target.suffix}",
            "target": made.plan.target,
            "isa": made.plan.isa,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "runtime": made.target.version},
            "seed": asked.seed,
            "calibration": asked.calibration,
            "asked": asdict(asked),
        },
    )
    reports.write(folder)
