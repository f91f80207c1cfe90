"""Loaders of any kind as splits, and what is held out of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from exactq.datasets.splits import Batch, Indexed, Split, Streamed, in_memory
from exactq.training.samples import batches_in, divided, epoch_of, split_of

NUMBERS = torch.arange(20.0).reshape(20, 1)


def seen(split: Split) -> list[int]:
    return [int(v) for batch in split for v in batch.inputs[0].flatten()]


def stream(sizes: tuple[int, ...] = (4, 4, 4, 4, 4)) -> Streamed:
    return Streamed(lambda: (Batch((part,)) for part in NUMBERS.split(list(sizes))))


@pytest.mark.parametrize(
    "loader",
    [
        [NUMBERS[:10], NUMBERS[10:]],
        [(NUMBERS[:10], torch.zeros(10)), ([NUMBERS[10:]], None)],
        [Batch((NUMBERS,))],
        DataLoader(TensorDataset(NUMBERS, torch.zeros(20)), batch_size=7),
        in_memory((NUMBERS,)),
        stream(),
    ],
)
def test_a_loader_is_a_split_that_can_be_gone_through_again(loader: object) -> None:
    split = split_of(loader)  # type: ignore[arg-type]
    assert seen(split) == seen(split) == list(range(20))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("split", [in_memory((NUMBERS,)), stream()], ids=["indexed", "streamed"])
def test_what_is_held_out_is_not_trained_on_and_nothing_is_lost(split: Split, share: float) -> None:
    train, held = divided(split, share, seed=3)
    assert held is not None
    assert seen(train)
    assert seen(held)
    assert sorted(seen(train) + seen(held)) == list(range(20))
    again, again_held = divided(split, share, seed=3)
    assert again_held is not None
    assert (seen(again), seen(again_held)) == (seen(train), seen(held))


def test_nothing_is_held_out_where_the_share_is_zero() -> None:
    train, held = divided(stream(), 0.0, seed=0)
    assert held is None
    assert seen(train) == list(range(20))


@pytest.mark.parametrize("split", [in_memory((NUMBERS,)), stream()], ids=["indexed", "streamed"])
def test_an_epoch_goes_on_where_it_was_left(split: Split) -> None:
    whole = [batch.inputs[0] for batch in epoch_of(split, 2, size=4, seed=1)]
    assert len(whole) == batches_in(split, 4) == 5
    for skip in range(6):
        rest = [batch.inputs[0] for batch in epoch_of(split, 2, size=4, seed=1, skip=skip)]
        assert len(rest) == 5 - skip
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[skip:], strict=True))


def test_a_batch_that_cannot_be_read_keeps_its_place_in_the_epoch() -> None:
    whole = in_memory((NUMBERS,))
    assert isinstance(whole, Indexed)
    damaged = replace(whole, take=lambda indices: None if 7 in indices else whole.take(indices))
    for skip in range(6):
        wanted = list(epoch_of(whole, 2, size=4, seed=1, skip=skip))
        found = list(epoch_of(damaged, 2, size=4, seed=1, skip=skip))
        assert [batch is None for batch in found] == [batch is not None and 7 in batch.inputs[0] for batch in wanted]


def test_each_epoch_of_indexed_data_has_an_order_of_its_own() -> None:
    split = in_memory((NUMBERS,))
    assert isinstance(split, Indexed)
    orders = [[int(v) for b in epoch_of(split, epoch, size=6, seed=0) for v in b.inputs[0]] for epoch in range(3)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert batches_in(split, 6) == 4
