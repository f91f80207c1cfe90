"""The training of what a run made: a run folder in, a run folder out, and on killed ones it goes on."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from exactq import __version__, reports
from exactq.datasets.catalog import CALIBRATION, load
from exactq.errors import UsageError
from exactq.graphs import store
from exactq.graphs.programs import program
from exactq.metrics import default_metric
from exactq.quantized import PLAN, Quantized
from exactq.reports.folder import MANIFEST
from exactq.runs.folder import check_replaceable, open_model, open_run, read_manifest, write_json, write_manifest
from exactq.runs.jobs import Candidate, Job
from exactq.runs.measurement import Budget, check_evaluation, notes, plain
from exactq.runs.tuning import FACTS, trained, training_for
from exactq.runs.wishes import Wishes
from exactq.runs.workplace import working
from exactq.talk import SILENT, Talk
from exactq.traces import walk
from exactq.training.methods import SAYS


def train_run(
    folder: str | Path, *, data: str | None = None, out: str | None = None, talk: Talk = SILENT, **wishes: Any
) -> dict[str, Any]:
    """A run folder with the fine-tuned model of the one in `folder`, and the facts as plain data (what `exactq train` prints).

    `wishes` are the flags of the training by name. Without `data` it is trained on the run's own; a folder without a manifest,
    as `Quantized.save` writes it, needs some. `out` in the facts is None where no epoch was better: then nothing was written.
    """
    source = Path(folder)
    saved, known = _opened(source, data)
    place = Path(out) if out is not None else source.with_name(f"{source.name}-trained")
    if place.resolve() == source.resolve():
        raise UsageError(f"--out {place} is the run that is trained: choose another folder")
    made_for = f"{saved.plan.target}@{saved.plan.isa}"
    plan = str(source / PLAN)
    asked = Wishes(known["model"], target=made_for, plan=plan, data=known["data"], train="always", out=str(place), **wishes)
    check_replaceable(place)
    with working(place, talk) as work, torch.random.fork_rng(devices=[]):
        inputs = saved.float_graph.inputs
        names, shapes = tuple(i.name for i in inputs), tuple(i.shape[1:] for i in inputs)
        dataset = load(known["data"], calibration=known["calibration"], seed=asked.seed, inputs=names, shapes=shapes)
        check_evaluation(dataset, saved.float_graph)
        metric, reference = default_metric(dataset), program(saved.float_graph)
        training = training_for(asked, dataset, outputs_matter=False)
        count = "a stream of" if training.samples is None else f"{training.samples:,}"
        course = f"{training.course.epochs} epochs at most, by {SAYS[training.method]}"
        talk.say(f"train      {training.objective.name} on {count} {training.source} samples, {course}")
        artifact = saved.artifact()
        job = Job(dataset, lambda x: walk(reference, x), metric, Budget(asked.max_drop, asked.max_error), True, work)
        made = trained(job, Candidate(saved, artifact, {}), training)
        facts = {
            "model": known["model"],
            "target": made_for,
            "recipe": saved.plan.recipe,
            "training": made.facts,
            "metric": {"name": metric.name, **_figures(made.facts)},
            "notes": notes(made.quantized) + work.remarks(dataset),
        }
        better = bool(made.facts["best"])
        if better:
            work.publish(lambda place: _write(place, asked, known, made.quantized, made.facts))
    return plain({"out": str(place) if better else None, **facts})


def _opened(folder: Path, data: str | None) -> tuple[Quantized, dict[str, Any]]:
    """The model, and what is known of the run that made it: its model's name, its data, and the calibration's size."""
    if (folder / MANIFEST).is_file():
        saved = open_run(folder, data=data)
        manifest = read_manifest(folder)
        known = {"model": manifest.get("model", folder.name), "calibration": manifest.get("calibration", CALIBRATION)}
        return saved.quantized, {**known, "data": saved.data}
    model = open_model(folder)
    if data is None:
        raise UsageError(f"{folder} does not say on which data it was made: name some with --data")
    return model, {"model": folder.name, "data": data, "calibration": CALIBRATION}


def _figures(facts: dict[str, Any]) -> dict[str, float | None]:
    """The metric on held-out samples before training, and at the epoch that was chosen."""
    history = facts["history"]
    return {"before": history[0]["metric"], "after": history[facts["best"]]["metric"]} if history else {}


def _write(folder: Path, asked: Wishes, known: dict[str, Any], made: Quantized, facts: dict[str, Any]) -> None:
    made.save(folder)
    artifact = f"model{made.target.suffix}"
    store.write(folder / artifact, made.artifact())
    write_json(folder / FACTS, facts)
    write_manifest(
        folder,
        {
            "exactq": __version__,
            "model": known["model"],
            "data": known["data"],
            "artifact": artifact,
            "target": made.plan.target,
            "isa": made.plan.isa,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "runtime": made.target.version},
            "seed": asked.seed,
            "calibration": known["calibration"],
            "asked": asdict(asked),
        },
    )
    reports.write(folder)
