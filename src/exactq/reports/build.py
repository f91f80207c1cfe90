"""A run folder -> its facts, and the files that show them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from exactq.errors import ModelError, UsageError
from exactq.graphs import store
from exactq.reports.advice import advice, commands
from exactq.reports.facts import VERSION, Facts, MetricFacts, Size, TrainingFacts, Word, checked, plain
from exactq.reports.folder import Run, read
from exactq.reports.integers import bias_table
from exactq.reports.layers import layers, plan_lines
from exactq.reports.model_explorer import node_data, nodes_of
from exactq.reports.rendering import page
from exactq.reports.verdict import fine_tuning, sentence

HTML, JSON, NODES = "report.html", "report.json", "model_explorer.json"
"""The files that `write` puts into a run folder: the page, the facts, and node data for Model Explorer."""


def report(folder: str | Path) -> dict[str, Any]:
    """The facts of the run in `folder` as plain data, the content of `report.json`; nothing is written or executed.

    The same folder gives the same facts. Raises `ModelError` for a folder that is no run, is not whole, or was changed.
    """
    return plain(_facts(read(folder)))


def write(folder: str | Path) -> dict[str, Any]:
    """The facts of the run in `folder`, after writing the page, the JSON and the node data there, each whole or not at all."""
    folder = Path(folder)
    facts = report(folder)
    artifact = folder / facts["artifact"]
    nodes = node_data(checked(facts), nodes_of(artifact.read_bytes(), artifact.suffix, checked(facts)))
    try:
        store.write(folder / NODES, _json(nodes))
        store.write(folder / JSON, _json(facts))
        store.write(folder / HTML, page(facts).encode())
    except OSError as error:
        raise UsageError(f"cannot write the report to {folder}: {error.strerror}") from error
    return facts


def _json(content: Any) -> bytes:
    try:
        return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except ValueError as error:
        raise ModelError(f"the run's facts cannot be written as JSON: {error}") from error


def _facts(run: Run) -> Facts:
    manifest, metrics = run.manifest, run.metrics
    found = layers(run)
    metric = _metric(run)
    word: Word = metrics.verdict if metrics is not None else "unmeasured"
    return Facts(
        version=VERSION,
        exactq=manifest.exactq,
        model=manifest.model,
        data=manifest.data,
        target=manifest.target,
        isa=manifest.isa,
        recipe=run.quantized.plan.recipe,
        artifact=manifest.artifact,
        versions=manifest.versions,
        seed=manifest.seed,
        calibration=manifest.calibration,
        verdict=word,
        sentence=sentence(run, word, metric),
        metric=metric,
        coverage=metrics.coverage if metrics is not None else run.quantized.coverage(),
        size=metrics.size if metrics is not None else Size(None, run.artifact_bytes),
        latency=metrics.latency if metrics is not None else None,
        verify=run.verify,
        layers=found,
        plan=plan_lines(run.quantized.plan),
        advice=advice(run, word, found),
        notes=metrics.notes if metrics is not None else run.quantized.notes,
        commands=commands(run),
        training=_training(run),
        integers=metrics.integers if metrics is not None else (),
        biases=bias_table(run.quantized),
    )


def _training(run: Run) -> TrainingFacts | None:
    if run.metrics is None or (training := run.metrics.training) is None:
        return None
    return replace(training, sentence=fine_tuning(run.metrics.metric, asdict(training)))


def _metric(run: Run) -> MetricFacts | None:
    if (metrics := run.metrics) is None:
        return None
    given = metrics.metric
    values: dict[Any, float | None] = {}
    for key in ("float", "ptq", "qat", "deployed"):
        value = given.get(key)
        if isinstance(value, str):
            raise ModelError(f"metrics.json is damaged: the metric's {key} is the text {value!r:.80}, not a number")
        values[key] = value
    if not isinstance(given.get("name"), str):
        raise ModelError("metrics.json is damaged: the metric has no name")
    return MetricFacts(
        name=str(given["name"]),
        values=values,
        max_drop=_limit(run, "max_drop"),
        max_error=_limit(run, "max_error"),
        agreement=metrics.agreement,
        sqnr_db=metrics.sqnr_db,
        mean_error=metrics.mean_error,
    )


def _limit(run: Run, flag: str) -> float | None:
    value = run.manifest.asked.get(flag)
    return float(value) if isinstance(value, int | float) else None
