"""Training data of any kind as batches that can be gone through again, and the part of it that is held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from torch import Tensor

from exactq.datasets.splits import Batch, Indexed, Split, Streamed, labels_of, tensor_of
from exactq.errors import DataError

Loader = Split | Iterable[Batch | Tensor | tuple[object, ...] | list[object]]
"""A split, or a list or `DataLoader` of batches: a tensor, (inputs, labels) where inputs may be a tuple, or a `Batch`."""


def split_of(loader: Loader) -> Split:
    """The loader as a split. Raises `DataError` for one that can only be gone through once, and for items that are no batch."""
    if isinstance(loader, Indexed | Streamed):
        return loader
    if isinstance(loader, Iterator | Tensor | str) or not isinstance(loader, Iterable):
        raise DataError(
            f"the training data is a {type(loader).__name__}: it is gone through more than once, so give a list of batches, a "
            "DataLoader, or a split of a dataset"
        )
    return Streamed(lambda: (_batch(item, position) for position, item in enumerate(loader)))


def _batch(item: object, position: int) -> Batch:
    if isinstance(item, Batch):
        return item
    pair = item if isinstance(item, tuple | list) else (item, None)
    what = f"training batch {position}"
    if len(pair) != 2:
        raise DataError(f"{what} is a {type(item).__name__} of {len(pair)}: give (inputs, labels), several inputs as a tuple")
    inputs, labels = pair
    several = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    tensors = tuple(tensor_of(value, f"{what}, input {place}") for place, value in enumerate(several))
    return Batch(tensors, None if labels is None else labels_of(labels, f"{what}, labels"))


def divided(split: Split, share: float, seed: int) -> tuple[Split, Split | None]:
    """What is trained on, and what is held out: `share` of it, at least one sample; None for a share of 0.

    Data fetched by index is drawn by `seed`; of a stream every n-th batch is held out, n = 1/`share` or the number of batches.
    Raises `DataError` where nothing is left to train on.
    """
    if share == 0:
        return split, None
    if isinstance(split, Indexed):
        if split.samples < 2:
            raise DataError("the training data has one sample: it cannot be both trained on and held out, give more data")
        held = min(max(1, round(share * split.samples)), split.samples - 1)
        order = split.shuffled(seed).order
        return replace(split, order=order[held:]), replace(split, order=order[:held])
    batches = sum(1 for _ in split)
    if batches < 2:
        raise DataError(f"the training data has {batches} batch: it cannot be both trained on and held out, give more batches")
    every = min(max(2, round(1 / share)), batches)
    return _chosen(split, every, held=False), _chosen(split, every, held=True)


def _chosen(split: Streamed, every: int, *, held: bool) -> Streamed:
    return Streamed(lambda: (b for position, b in enumerate(split) if (position % every == every - 1) == held))


def epoch_of(split: Split, epoch: int, *, size: int, seed: int, skip: int = 0) -> Iterator[Batch | None]:
    """The batches of an epoch after the first `skip`: by index in an order of its own, of a stream in the stream's.

    None stands for a batch of which no sample can be read, so that the others keep their places.
    """
    if isinstance(split, Streamed):
        return islice(iter(split), skip, None)
    shuffled = split.shuffled(seed * 1_000_003 + epoch)
    if skip * size >= split.samples:
        return iter(())
    return replace(shuffled, order=shuffled.order[skip * size :], size=size).places()


def batches_in(split: Split, size: int) -> int:
    """How many batches an epoch has; a stream is gone through to count them."""
    return -(-split.samples // size) if isinstance(split, Indexed) else sum(1 for _ in split)
