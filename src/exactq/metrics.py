"""How good outputs are: a metric is a record of pure functions over batches, and needs the memory of one batch.

accuracy = #{argmax(y) = label} / #{labels}; cosine = mean over samples and outputs of (y · r) / (|y| |r|), r the float model's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exactq import pythonfile
from exactq.datasets.splits import Batch, Dataset
from exactq.errors import DataError, UsageError, unknown

Outputs = tuple[Tensor, ...]
Run = Callable[[Outputs], Outputs]
"""A model as a function: inputs by position -> outputs by position."""
OTHERS = "--metric cosine, which needs no labels, or a metric of your own (file.py:function)"


@dataclass(frozen=True)
class Seen:
    """What a metric reads of one batch: the outputs, the batch's labels, and the float model's outputs where it wants them."""

    outputs: Outputs
    labels: Tensor | None
    reference: Outputs | None = None


@dataclass(frozen=True)
class Metric:
    """`result(see(see(start(), first), second))` is the value; it lies in `span`, and more is better.

    `reference` says that it compares with the float model, `labels` that it reads labels.
    """

    name: str
    start: Callable[[], Any]
    see: Callable[[Any, Seen], Any]
    result: Callable[[Any], float]
    labels: bool = False
    reference: bool = False
    span: tuple[float, float] = (0.0, 1.0)


def metric_named(name: str) -> Metric:
    """The metric `accuracy`, `cosine`, or a user's `file.py:function`. Raises `UsageError` for others."""
    if pythonfile.is_named(name):
        return user_metric(name)
    if name not in METRICS:
        raise unknown("metric", name, [*METRICS, "file.py:function"])
    return METRICS[name]


def default_metric(dataset: Dataset) -> Metric:
    """Accuracy where the labels are classes (whole numbers, one a sample), else the cosine to the float model."""
    labels = dataset.first.labels
    return ACCURACY if labels is not None and labels.dim() == 1 and labels.dtype == torch.int64 else COSINE


def measure(metric: Metric, run: Run, batches: Iterable[Batch], *, reference: Run | None = None) -> float:
    """The metric of the model `run` over `batches`; one that compares with the float model needs it as `reference`.

    Raises `UsageError` where that is missing, `DataError` for labels or outputs that the metric cannot read.
    """
    if metric.reference and reference is None:
        raise UsageError(f"the metric `{metric.name}` compares with the float model: pass reference=")
    state = metric.start()
    with torch.no_grad():
        for batch in batches:
            wanted = reference(batch.inputs) if metric.reference and reference is not None else None
            state = metric.see(state, Seen(run(batch.inputs), batch.labels, wanted))
    return metric.result(state)


def check_fit(metric: Metric, dataset: Dataset, run: Run, *, whole: bool = False) -> None:
    """Nothing, or the `DataError` of a metric that the labels, or the model's scores, do not fit: told on one batch.

    Two of its samples go through the model `run`, with `whole` all of them, for models of a fixed batch. Data that counts its
    classes has as many as the model has scores, not one more or less: else its labels are not the model's numbers.
    """
    if not metric.labels:
        return
    batch = next(iter(dataset.evaluation))
    some = batch if whole else batch.first(2)
    with torch.no_grad():
        scores = run(some.inputs)[0]
    _check_kind(scores, some.labels)
    classes, counted = scores.shape[1], dataset.classes
    if counted is not None and (counted > classes or (counted < classes and not dataset.at_least)):
        raise DataError(
            f"`{dataset.name}` has {counted:,} classes and the model scores {classes:,}: its labels are not the model's, and "
            f"`{metric.name}` would mean nothing. Give data with the model's classes, or {OTHERS}"
        )
    assert batch.labels is not None
    _check_range(batch.labels, classes)


def user_metric(spec: str) -> Metric:
    """The metric that calls a user's `f(outputs, labels)` once, on everything that was seen.

    `outputs` is the tensor (samples, …) of a model with one output, a tuple of them otherwise; `labels` a tensor or None.
    The answer is a finite number, more is better, of any span. Raises `DataError` with file and line for what fails inside.
    """
    function = pythonfile.function(spec, DataError)

    def result(state: tuple[Seen, ...]) -> float:
        outputs = tuple(torch.cat(column) for column in zip(*(seen.outputs for seen in state), strict=True))
        labels = [seen.labels for seen in state if seen.labels is not None]
        with pythonfile.told(spec, DataError):
            answer = function(outputs[0] if len(outputs) == 1 else outputs, torch.cat(labels) if labels else None)
            value = float(answer)
        if not math.isfinite(value):
            raise DataError(f"the metric `{spec}` answered {value}: a finite number is needed")
        return value

    return Metric(spec, tuple, lambda state, seen: (*state, seen), result, span=(-math.inf, math.inf))


def _count(state: tuple[int, int], seen: Seen) -> tuple[int, int]:
    """(right, all) with one batch more: the first output (n, classes, …) against whole labels (n, …)."""
    scores, labels = seen.outputs[0], _check_kind(seen.outputs[0], seen.labels)
    _check_range(labels, scores.shape[1])
    # argmax takes the first of equal scores, as codes often are, and takes NaN for the largest: a NaN is never right.
    right = (scores.argmax(1) == labels) & ~scores.isnan().any(1)
    return state[0] + int(right.sum()), state[1] + labels.numel()


def _check_kind(scores: Tensor, labels: Tensor | None) -> Tensor:
    """The labels, where they are whole and one for each score. Raises `DataError`."""
    if labels is None:
        raise DataError(f"`accuracy` needs labels, and the data has none: use {OTHERS}")
    if labels.dtype != torch.int64 or scores.dim() < 2 or scores.shape[:1] + scores.shape[2:] != labels.shape:
        raise DataError(
            f"`accuracy` needs scores (n, classes, …) and whole labels (n, …), not {tuple(scores.shape)} and "
            f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}: use {OTHERS}"
        )
    return labels


def _check_range(labels: Tensor, classes: int) -> None:
    """Nothing, or a `DataError` that names a label which the model has no score for."""
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        value = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise DataError(
            f"the label {value} is no class of a model with {classes} scores: 0..{classes - 1}; give data with the model's "
            f"classes, or {OTHERS}"
        )


def _alike(state: tuple[float, int], seen: Seen) -> tuple[float, int]:
    """(sum of cosines, number of them) with one batch more; two zero vectors are alike, one zero vector is like nothing."""
    if seen.reference is None:
        raise UsageError("`cosine` compares with the float model's outputs, and there are none")
    for output, wanted in zip(seen.outputs, seen.reference, strict=True):
        if output.shape != wanted.shape:
            raise DataError(f"`cosine` needs outputs of one shape, not {tuple(output.shape)} and {tuple(wanted.shape)}")
        y, r = (t.double().reshape(t.shape[0], -1) for t in (output, wanted))
        norms = y.norm(dim=1) * r.norm(dim=1)
        cosines = torch.where(norms > 0, (y * r).sum(1) / norms, 0.0).clamp(-1, 1)
        cosines = torch.where((y == r).all(1), 1.0, cosines).nan_to_num(0.0)
        state = state[0] + float(cosines.sum()), state[1] + len(cosines)
    return state


def _share(state: tuple[float, int]) -> float:
    """The mean. Raises `DataError` where nothing was seen."""
    if state[1] == 0:
        raise DataError("no batch was seen: a metric of nothing is none")
    return state[0] / state[1]


ACCURACY = Metric("accuracy", lambda: (0, 0), _count, _share, labels=True)
COSINE = Metric("cosine", lambda: (0.0, 0), _alike, _share, reference=True, span=(-1.0, 1.0))
METRICS = {metric.name: metric for metric in (ACCURACY, COSINE)}
