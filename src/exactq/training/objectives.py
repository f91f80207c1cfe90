"""What training makes small, of one batch: the distance to the float model's outputs, or the error against labels.

Distillation (Hinton et al. 2015, arXiv 1503.02531): T²·Σ p·(log p − log q), p = softmax(r/T), q = softmax(y/T), mean over
samples; r are the float model's scores, y the quantized model's. Matching: Σ(y − r)² / Σr², for outputs that are no scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from exactq.errors import DataError, UsageError

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Answer:
    """What a loss reads of one batch: outputs, labels, the float model's outputs, and values of both models by name."""

    outputs: tuple[Tensor, ...]
    labels: Tensor | None = None
    reference: tuple[Tensor, ...] = ()
    features: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """`loss(answer)` is a scalar, the mean over a batch. It says what it reads beside the outputs.

    `teacher` runs the float model beside the quantized one, `features` keeps every value that has a grid of its own.
    """

    name: str
    loss: Callable[[Answer], Tensor]
    teacher: bool = False
    labels: bool = False
    features: bool = False


def distillation(temperature: float = 1.0, *, features: float = 0.0) -> Objective:
    """The distance of the scores to the float model's; it needs no labels.

    An output (n, classes, …) with more than one class is compared as probabilities, any other as in `matching`. `features`
    adds that many times the mean relative squared error of the values inside.
    """
    if not temperature > 0:
        raise UsageError(f"the temperature is {temperature}; it needs a number above 0, 1 leaves the scores as they are")

    def loss(answer: Answer) -> Tensor:
        pairs = zip(answer.outputs, answer.reference, strict=True)
        return _with_features(sum((_divergence(y, r, temperature) for y, r in pairs), torch.zeros(())), answer, features)

    return Objective("distillation", loss, teacher=True, features=_weight(features))


def matching(*, features: float = 0.0) -> Objective:
    """The relative squared error of the outputs to the float model's, for regression; it needs no labels."""

    def loss(answer: Answer) -> Tensor:
        pairs = zip(answer.outputs, answer.reference, strict=True)
        return _with_features(sum((relative_error(y, r) for y, r in pairs), torch.zeros(())), answer, features)

    return Objective("matching", loss, teacher=True, features=_weight(features))


def cross_entropy(answer: Answer) -> Tensor:
    """−log softmax(y)[label], mean over labels: scores (n, classes, …) against whole labels (n, …)."""
    scores, labels = answer.outputs[0], answer.labels
    if labels is None:
        raise DataError("the training data has no labels: train by `distillation`, which needs none")
    if labels.dtype != torch.int64 or scores.dim() < 2 or scores.shape[:1] + scores.shape[2:] != labels.shape:
        raise DataError(
            f"labels {str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)} are no classes for scores "
            f"{tuple(scores.shape)}: each needs one whole label; train by `distillation` or `matching`, which need none"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= scores.shape[1]:
        value = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise DataError(f"the label {value} is no class of a model with {scores.shape[1]} scores: 0..{scores.shape[1] - 1}")
    return F.cross_entropy(scores, labels)


def relative_error(y: Tensor, r: Tensor) -> Tensor:
    """Σ(y − r)² / Σr²: the inverse of the signal-to-noise ratio."""
    return (y - r).square().sum() / r.square().sum().clamp(min=_TINY)


def _divergence(y: Tensor, r: Tensor, temperature: float) -> Tensor:
    if y.dim() < 2 or y.shape[1] < 2:
        return relative_error(y, r)
    logs = [torch.log_softmax(scores / temperature, 1) for scores in (y, r)]
    positions = y.numel() // y.shape[1]
    return F.kl_div(logs[0], logs[1], reduction="sum", log_target=True) * (temperature**2 / positions)


def _with_features(loss: Tensor, answer: Answer, weight: float) -> Tensor:
    if not answer.features:
        return loss
    errors = [relative_error(y, r) for y, r in answer.features.values()]
    return loss + weight * torch.stack(errors).mean()


def _weight(features: float) -> bool:
    if not features >= 0:
        raise UsageError(f"features weigh {features}; they need a number from 0 up")
    return features > 0


DISTILLATION = distillation()
MATCHING = matching()
LABELS = Objective("labels", cross_entropy, labels=True)
OBJECTIVES = {o.name: o for o in (DISTILLATION, MATCHING, LABELS)}
