"""Noise for studies of speed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exactq.datasets.catalog import load
from exactq.datasets.noise import noise_of, parse_shapes, written
from exactq.errors import UsageError


def test_a_sample_is_a_function_of_seed_and_index_alone() -> None:
    def images(seed: int, size: int) -> torch.Tensor:
        batches = list(load("noise:1,3,4,4", seed=seed, batch_size=size, calibration=10).calibration)
        return torch.cat([batch.inputs[0] for batch in batches])

    assert images(0, 3).shape == (10, 3, 4, 4)
    assert torch.equal(images(0, 3), images(0, 10))
    assert not torch.equal(images(0, 3), images(1, 3))


def test_noise_is_normal_has_no_labels_and_holds_some_back() -> None:
    dataset = load("noise:1,64;1,2,3")
    values = torch.cat([batch.inputs[0] for batch in dataset.evaluation])
    assert values.shape == (256, 64)
    assert abs(float(values.mean())) < 5 / 128  # five standard errors
    assert dataset.first.labels is None
    assert dataset.shapes == ((64,), (2, 3))
    most = load("noise:1,2", calibration=10_000)
    seen = {x.numpy().tobytes() for batch in most.calibration for x in batch.inputs[0]}
    assert seen.isdisjoint(x.numpy().tobytes() for batch in most.evaluation for x in batch.inputs[0])


SHAPES = st.lists(st.lists(st.integers(1, 300), max_size=4).map(tuple), min_size=1, max_size=3).map(tuple)


@given(SHAPES)
def test_shapes_are_read_as_they_are_written(shapes: tuple[tuple[int, ...], ...]) -> None:
    assert tuple(shape[1:] for shape in parse_shapes(written(shapes))) == shapes
    assert noise_of(shapes) == f"noise:{written(shapes)}"


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1,0", "1,-2", "1;", "1x3", "1.5"])
def test_what_is_no_shape_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="is no input shape: write sizes ≥ 1 as 1,3,32,32"):
        parse_shapes(text)
