"""Metrics, on values that can be counted by hand."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exactq.datasets.splits import Batch, Dataset, in_memory
from exactq.errors import DataError, UsageError
from exactq.metrics import ACCURACY, COSINE, METRICS, Metric, check_fit, default_metric, measure, metric_named

Outputs = tuple[Tensor, ...]


def same(inputs: Outputs) -> Outputs:
    return inputs


def dataset(inputs: Outputs, labels: Tensor | None) -> Dataset:
    split = in_memory(inputs, labels)
    return Dataset("mine", split, split)


@given(
    st.lists(st.tuples(st.lists(st.integers(-2, 2), min_size=3, max_size=3), st.integers(0, 2)), min_size=1), st.integers(1, 5)
)
def test_accuracy_is_the_share_of_labels_that_have_the_first_largest_score(
    rows: list[tuple[list[int], int]], size: int
) -> None:
    scores = torch.tensor([row for row, _ in rows]).float()
    labels = torch.tensor([label for _, label in rows])
    right = sum(row.index(max(row)) == label for row, label in rows)
    assert measure(ACCURACY, same, in_memory((scores,), labels).sized(size)) == float(Fraction(right, len(rows)))


def test_accuracy_counts_pixels_where_labels_are_images() -> None:
    scores = torch.zeros(1, 2, 2, 2)
    scores[0, 1, 0, 0] = 1
    labels = torch.tensor([[[1, 1], [0, 0]]])
    assert measure(ACCURACY, same, [Batch((scores,), labels)]) == 0.75


@pytest.mark.parametrize(("counted", "at_least", "fits"), [(3, 0, 1), (2, 0, 0), (4, 0, 0), (2, 1, 1), (4, 1, 0), (None, 0, 1)])
def test_data_that_counts_its_classes_has_as_many_as_the_model_scores(counted: int | None, at_least: int, fits: int) -> None:
    split = in_memory((torch.eye(3),), torch.tensor([0, 1, 1]))
    data = Dataset("pets", split, split, classes=counted, at_least=bool(at_least))
    check_fit(COSINE, data, same)
    if fits:
        check_fit(ACCURACY, data, same)
        return
    said = rf"`pets` has {counted} classes and the model scores 3: .* Give data with the model's classes, or --metric cosine, "
    with pytest.raises(DataError, match=said):
        check_fit(ACCURACY, data, same)


def test_models_that_score_every_pixel_fit() -> None:
    scores, labels = torch.zeros(4, 5, 2, 3), torch.full((4, 2, 3), 4)
    check_fit(ACCURACY, dataset((scores,), labels), same)
    with pytest.raises(DataError, match="the label 5 is no class of a model with 5 scores"):
        check_fit(ACCURACY, dataset((scores,), labels + (torch.arange(4) == 3).view(-1, 1, 1)), same)  # in the last sample


def test_a_fit_is_tried_on_two_samples_or_on_the_whole_batch() -> None:
    sizes: list[int] = []

    def run(inputs: Outputs) -> Outputs:
        sizes.append(len(inputs[0]))
        return inputs

    for whole in (False, True):
        check_fit(ACCURACY, dataset((torch.eye(3),), torch.arange(3)), run, whole=whole)
    assert sizes == [2, 3]


@pytest.mark.parametrize("labels", [None, torch.zeros(3), torch.zeros(3, 1, dtype=torch.int64)])
def test_labels_that_are_no_classes_are_told_on_the_first_batch(labels: Tensor | None) -> None:
    with pytest.raises(DataError, match=r"`accuracy` needs .*: use --metric cosine, which needs no labels, or a metric"):
        check_fit(ACCURACY, dataset((torch.eye(3),), labels), same)


def test_a_nan_is_never_right() -> None:
    labels = torch.tensor([0, 1])
    broken = torch.tensor([[math.nan, 0.0], [0.0, 1.0]])
    assert measure(ACCURACY, lambda inputs: (broken,), [Batch((torch.zeros(2, 2),), labels)]) == 0.5


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "`accuracy` needs labels, and the data has none: use --metric cosine, which"),
        (torch.zeros(2), r"whole labels \(n, …\), not \(2, 3\) and float32 \(2,\)"),
        (torch.zeros(2, 1, dtype=torch.int64), r"not \(2, 3\) and int64 \(2, 1\)"),
        (torch.tensor([0, 3]), "the label 3 is no class of a model with 3 scores: 0..2"),
        (torch.tensor([-1, 0]), "the label -1 is no class"),
    ],
)
def test_accuracy_declines_labels_that_are_no_classes(labels: Tensor | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        measure(ACCURACY, same, [Batch((torch.zeros(2, 3),), labels)])


def test_cosine_is_one_for_the_model_itself_and_for_any_multiple() -> None:
    batches = [Batch((torch.randn(5, 2, 3), torch.randn(5, 7)))]
    assert measure(COSINE, same, batches, reference=same) == 1
    doubled = measure(COSINE, lambda inputs: tuple(x * 2 for x in inputs), batches, reference=same)
    assert doubled == pytest.approx(1, abs=8 * 2**-52)  # four roundings of double values near one
    negative = measure(COSINE, lambda inputs: tuple(-x for x in inputs), batches, reference=same)
    assert negative == pytest.approx(-1, abs=8 * 2**-52)


def test_cosine_is_the_mean_over_samples_and_outputs() -> None:
    inputs = (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    other = (torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 0.0]]))
    # right angle: 0; two zero vectors: 1; (12 + 12) / 25; a zero vector beside another: 0
    expected = float((0 + 1 + Fraction(24, 25) + 0) / 4)
    assert measure(COSINE, lambda _: other, [Batch(inputs)], reference=same) == pytest.approx(expected, abs=2**-50)


def test_cosine_needs_the_float_model_and_outputs_of_its_shape() -> None:
    batches = [Batch((torch.ones(1, 2),))]
    with pytest.raises(UsageError, match="`cosine` compares with the float model: pass reference="):
        measure(COSINE, same, batches)
    with pytest.raises(DataError, match=r"outputs of one shape, not \(1, 1\) and \(1, 2\)"):
        measure(COSINE, lambda inputs: (inputs[0][:, :1],), batches, reference=same)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_each_metric_keeps_its_span_and_does_not_depend_on_the_batches(metric: Metric) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(50, 4, generator=generator), torch.randint(4, (50,), generator=generator)
    split = in_memory((scores,), labels)

    def run(inputs: Outputs) -> Outputs:
        return (inputs[0] + 0.5,)

    values = {measure(metric, run, split.sized(size), reference=same) for size in (1, 7, 50)}
    assert max(values) - min(values) <= 50 * 2**-52  # one rounding a sample
    assert metric.span[0] <= min(values) <= max(values) <= metric.span[1]
    with pytest.raises(DataError, match="a metric of nothing is none"):
        measure(metric, run, [], reference=same)


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (torch.tensor([1, 0]), "accuracy"),
        (None, "cosine"),
        (torch.zeros(2), "cosine"),
        (torch.zeros(2, 3, dtype=torch.int64), "cosine"),
    ],
)
def test_the_default_metric_is_accuracy_where_labels_are_classes(labels: Tensor | None, name: str) -> None:
    assert default_metric(dataset((torch.zeros(2, 3),), labels)).name == name


def test_metrics_are_found_by_name() -> None:
    assert metric_named("cosine") is COSINE
    with pytest.raises(
        UsageError, match=r"unknown metric 'acuracy': did you mean 'accuracy'\? Known: accuracy, cosine, file.py"
    ):
        metric_named("acuracy")


def test_a_users_metric_sees_everything_once(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def f(outputs, labels): return (outputs[:, 0] - labels).abs().sum()")
    metric = metric_named(f"{tmp_path / 'm.py'}:f")
    split = in_memory((torch.arange(6.0).reshape(6, 1),), torch.ones(6)).sized(4)
    assert measure(metric, same, split) == 1 + 0 + 1 + 2 + 3 + 4


def test_a_users_metric_gets_several_outputs_as_a_tuple_and_none_for_no_labels(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def f(outputs, labels): return len(outputs) + (labels is None)")
    metric = metric_named(f"{tmp_path / 'm.py'}:f")
    assert measure(metric, same, [Batch((torch.ones(1, 1), torch.ones(1, 1)))]) == 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('x')", "m.py:2: KeyError: 'x'"),
        ("return float('nan')", "answered nan: a finite number is needed"),
        ("return 'much'", "ValueError: could not convert string to float: 'much'"),
    ],
)
def test_a_users_metric_that_fails_is_told(tmp_path: Path, body: str, said: str) -> None:
    (tmp_path / "m.py").write_text(f"def f(outputs, labels):\n    {body}")
    with pytest.raises(DataError, match=said):
        measure(metric_named(f"{tmp_path / 'm.py'}:f"), same, [Batch((torch.ones(1, 1),))])
