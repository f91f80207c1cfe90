"""Losses beside their formulas in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from exactq.errors import UsageError
from exactq.training.objectives import LABELS, MATCHING, OBJECTIVES, Answer, distillation, relative_error

Y, R = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.5, 0.0]]), torch.tensor([[1.5, 2.0, -2.0], [0.0, 0.0, 1.0]])


def softmax(scores: list[float], temperature: float) -> list[float]:
    powers = [math.exp(s / temperature) for s in scores]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_is_the_mean_divergence_times_the_squared_temperature(temperature: float) -> None:
    by_hand = 0.0
    for y, r in zip(Y.tolist(), R.tolist(), strict=True):
        p, q = softmax(r, temperature), softmax(y, temperature)
        by_hand += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(Y)
    assert float(distillation(temperature).loss(Answer((Y,), reference=(R,)))) == pytest.approx(by_hand, rel=1e-5)


def test_equal_outputs_lose_nothing_and_every_output_counts() -> None:
    for objective in (distillation(), MATCHING):
        assert float(objective.loss(Answer((R,), reference=(R,)))) == 0.0
        one = float(objective.loss(Answer((Y,), reference=(R,))))
        assert float(objective.loss(Answer((Y, Y), reference=(R, R)))) == pytest.approx(2 * one)


def test_outputs_that_are_no_scores_are_matched() -> None:
    y, r = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]])
    assert float(distillation().loss(Answer((y,), reference=(r,)))) == float(MATCHING.loss(Answer((y,), reference=(r,))))
    assert float(relative_error(y, r)) == pytest.approx(1 / 10)


def test_features_are_weighed_and_averaged() -> None:
    features = {"a": (torch.ones(2), torch.zeros(2) + 2), "b": (torch.ones(2), torch.ones(2))}
    loss = distillation(features=4.0).loss(Answer((R,), reference=(R,), features=features))
    assert float(loss) == pytest.approx(4.0 * (0.25 + 0.0) / 2)
    assert distillation(features=4.0).features
    assert not distillation().features


def test_labels_cost_their_negative_logarithm() -> None:
    loss = LABELS.loss(Answer((Y,), torch.tensor([1, 0])))
    wanted = -sum(math.log(softmax(y, 1.0)[c]) for y, c in zip(Y.tolist(), (1, 0), strict=True)) / 2
    assert float(loss) == pytest.approx(wanted, rel=1e-6)


def test_dense_labels_are_classes_too() -> None:
    assert math.isfinite(LABELS.loss(Answer((torch.randn(2, 3, 4, 4),), torch.zeros(2, 4, 4, dtype=torch.int64))))


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match=r"temperature is 0.0; it needs a number above 0"):
        distillation(0.0)
    with pytest.raises(UsageError, match=r"features weigh -1.0"):
        distillation(features=-1.0)


def test_each_says_what_it_reads() -> None:
    assert {n: (o.teacher, o.labels) for n, o in OBJECTIVES.items()} == {
        "distillation": (True, False), "matching": (True, False), "labels": (False, True),
    }  # fmt: skip
