"""The verdict in one sentence that needs no knowledge of quantization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exactq.reports import words
from exactq.reports.facts import Latency, MetricFacts, Size, Verification, Word
from exactq.reports.folder import Run

NOTICEABLE = 0.05
"""A speed within 5 % of the other is called the same: two measurements in turns differ by as much."""


def sentence(run: Run, word: Word, metric: MetricFacts | None) -> str:
    """What the run found, for someone who decides whether to ship it."""
    manifest, metrics, found = run.manifest, run.metrics, run.verify
    model, target = manifest.model, manifest.target
    if metrics is None or metric is None or found is None:
        return f"{model} is quantized for {target}, but nothing was measured yet: make the run with `exactq run` for a verdict."
    gains = f"{_size(metrics.size)}, {_speed(metrics.latency)}"
    match word:
        case "ok":
            return f"{model} is ready for {target}: {_metric(metric)}, {gains}, and {_equal(found)}."
        case "over_budget":
            loss = f"{_metric(metric)}, beyond {_budget(metric)}"
            return f"{model} loses too much on {target}: {loss}; {gains}, and {_equal(found)}."
        case "differs":
            if not found.elements:
                return f"Do not ship {model} yet: nothing that {target} computes could be compared with the prediction."
            return (
                f"Do not ship {model} yet: {words.count(found.mismatches)} of {words.count(found.elements)} integers that "
                f"{found.runtime} computed are not the predicted ones, by up to {found.max_lsb} steps."
            )
        case "untrained":
            silent = f"The weights of {model} are random, so its {metric.name} says nothing"
            return f"{silent}; the rest holds: {gains}, and {_equal(found)}."
        case _:
            return f"Nothing of {model} computes in integers on {target}; the plan below says why for each layer."


def _metric(metric: MetricFacts) -> str:
    before, after = metric.values.get("float"), metric.values.get("deployed")
    if before is None or after is None:
        return f"{metric.name} not measured"
    return f"{metric.name} {words.score(metric, after)} ({words.change(metric, before, after)})"


def _budget(metric: MetricFacts) -> str:
    limits = []
    if metric.max_drop is not None:
        limits.append(f"a drop of {words.drop(metric, metric.max_drop)}")
    if metric.max_error is not None:
        limits.append(f"a mean output error of {words.number(metric.max_error)}")
    return f"the budget of {' and '.join(limits)}" if limits else "the budget"


def _size(size: Size) -> str:
    after = words.size(size.artifact_bytes)
    if not size.float_bytes or not size.artifact_bytes:
        return f"a file of {after}"
    ratio = size.float_bytes / size.artifact_bytes
    return f"{words.times(ratio)} smaller ({after})" if ratio >= 1 else f"a file that grew to {after}"


def _speed(latency: Latency) -> str:
    if latency.ratio > 1 + NOTICEABLE:
        return f"{words.times(latency.ratio)} as fast"
    return f"slower ({words.times(latency.ratio)} of the speed)" if latency.ratio < 1 - NOTICEABLE else "as fast as before"


def _equal(found: Verification) -> str:
    if found.mismatches:
        return f"{words.count(found.mismatches)} of {words.count(found.elements)} checked integers are not as predicted"
    rest = f" ({words.several(len(found.unverified), 'tensor')} could not be checked)" if found.unverified else ""
    return f"each of {words.count(found.elements)} checked integers is as predicted{rest}"


def fine_tuning(metric: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """What fine-tuning came to, in a sentence: the metric's values by model, and the facts of the training."""
    if training["failed"] is not None:
        return f"did not help: {training['failed']}"
    course = f"epoch {training['best']} of {training['epochs']} by {training['objective']}"
    if metric["qat"] is None:
        return f"did not help: no epoch of {training['epochs']} by {training['objective']} was better on held-out data"
    twin = training["float_tuned"]
    beside = "" if twin is None else f"; the float model after the same training has {twin:.4f}"
    if not training["helped"]:
        figures = f"{metric['qat']:.4f} after, {metric['ptq']:.4f} before"
        return f"did not help ({course}): {figures}; what was quantized is deployed{beside}"
    lost = metric["float"] - metric["ptq"]
    back = f", {(metric['qat'] - metric['ptq']) / lost:.0%} of the loss won back" if lost > 0 else ""
    return f"{course}: {metric['ptq']:.4f} before, {metric['qat']:.4f} after{back}{beside}"
