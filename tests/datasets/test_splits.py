"""Batches and splits: what is let in, and that going through again gives the same again."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exactq.datasets.splits import Batch, Dataset, Indexed, Streamed, in_memory, labels_of, tensor_of
from exactq.errors import DataError, UsageError


def numbers(samples: int) -> Indexed:
    values = torch.arange(samples)
    return in_memory((values.float().reshape(-1, 1),), values)


def seen(split: Indexed | Streamed) -> list[int]:
    return [int(label) for batch in split if batch.labels is not None for label in batch.labels]


@given(st.integers(1, 40), st.integers(1, 50))
def test_every_sample_comes_once_in_batches_of_the_size(samples: int, size: int) -> None:
    split = numbers(samples).sized(size)
    sizes = [len(batch) for batch in split]
    assert seen(split) == list(range(samples))
    assert all(n == size for n in sizes[:-1])
    assert 1 <= sizes[-1] <= size


@given(st.integers(1, 40), st.integers(0, 9))
def test_shuffled_is_an_order_of_the_same_samples_that_the_seed_decides(samples: int, seed: int) -> None:
    split = numbers(samples).shuffled(seed)
    assert sorted(seen(split)) == list(range(samples))
    assert seen(split) == seen(split) == seen(numbers(samples).shuffled(seed))


def test_two_seeds_give_two_orders() -> None:
    assert seen(numbers(100).shuffled(0)) != seen(numbers(100).shuffled(1))


def stream(sizes: tuple[int, ...]) -> Streamed:
    def make() -> Iterator[Batch]:
        for size in sizes:
            yield Batch((torch.zeros(size, 1),), torch.arange(size))

    return Streamed(make)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 30))
def test_a_stream_is_cut_at_the_number_of_samples(sizes: list[int], samples: int) -> None:
    whole = seen(stream(tuple(sizes)))
    assert seen(stream(tuple(sizes)).first(samples)) == whole[:samples]
    assert seen(stream(tuple(sizes)).first(samples).first(samples + 1)) == whole[:samples]


def test_the_first_samples_stand_for_all_where_there_are_fewer() -> None:
    assert seen(numbers(3).first(5)) == [0, 1, 2]
    for split in (numbers(3), stream((3,))):
        with pytest.raises(UsageError, match="0 samples are asked for: 1 or more"):
            split.first(0)


def test_a_stream_of_nothing_is_told() -> None:
    with pytest.raises(DataError, match="the data gave no batch"):
        list(stream(()))


@pytest.mark.parametrize(
    ("inputs", "labels", "said"),
    [
        ((), None, "a batch has no input"),
        ((torch.zeros(0, 3),), None, r"input 0 is empty: its shape is \(0, 3\)"),
        ((torch.tensor(1.0),), None, r"input 0 is empty: its shape is \(\)"),
        ((torch.zeros(2, 3), torch.zeros(3)), None, r"number of samples: input 0 \(2, 3\), input 1 \(3,\)"),
        ((torch.zeros(2, 3),), torch.zeros(1), r"input 0 \(2, 3\), labels \(1,\)"),
        ((torch.tensor([[0.0, 1.0], [2.0, math.nan]]),), None, r"input 0 has the value NaN at \(1, 1\): finite values"),
        ((torch.zeros(1), torch.tensor([-math.inf])), None, r"input 1 has the value -inf at \(0,\)"),
        ((torch.zeros(1),), torch.tensor([math.nan]), r"labels has the value NaN at \(0,\)"),
    ],
)
def test_a_batch_that_is_none_is_told(inputs: tuple[torch.Tensor, ...], labels: torch.Tensor | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Batch(inputs, labels)


def test_a_split_of_nothing_or_in_batches_of_nothing_is_none() -> None:
    with pytest.raises(DataError, match="a split needs sample indices"):
        Indexed(lambda indices: Batch((indices,)), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UsageError, match="a batch size of 0 is none"):
        numbers(3).sized(0)


def test_a_dataset_knows_its_shapes_and_its_first_batch() -> None:
    split = in_memory((torch.zeros(4, 3, 2), torch.zeros(4)))
    dataset = Dataset("mine", split, split)
    assert dataset.shapes == ((3, 2), ())
    assert len(dataset.first) == 4
    with pytest.raises(DataError, match="`mine` counts 3 classes, and its batches have no labels"):
        Dataset("mine", split, split, classes=3)


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [
        ("f2", torch.float32),
        ("f4", torch.float32),
        (">f8", torch.float32),
        ("i4", torch.int64),
        (">i8", torch.int64),
        ("?", torch.bool),
    ],
)
def test_arrays_become_what_models_take(dtype: str, becomes: torch.dtype) -> None:
    tensor = tensor_of(np.array([[0, 1]]).astype(dtype), "x")
    assert tensor.dtype == becomes
    assert tensor.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros(2, "u1"), "x is uint8: models take float32 or int64, convert it first"),
        (np.zeros(2, "i2"), "x is int16"),
        (np.zeros(2, "c8"), "x is of kind complex64: an array or tensor of real numbers is needed"),
        (np.array(["a"]), "x is of kind <U1"),
        (torch.zeros(2, dtype=torch.complex64), "x is of kind torch.complex64"),
        ([1.0], "x is of kind list"),
        (np.array([0.0, 1e300]), r"x has the value inf at \(1,\)"),
        (np.zeros((0, 3)), "x is empty"),
    ],
)
def test_arrays_that_no_model_takes_are_told(value: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        tensor_of(value, "x")


def test_labels_of_any_whole_kind_are_int64() -> None:
    for dtype in ("u1", "i2", "i8", "?"):
        assert labels_of(np.array([0, 1]).astype(dtype), "labels").dtype == torch.int64
    assert labels_of(torch.tensor([0.5], dtype=torch.float64), "labels").dtype == torch.float32
