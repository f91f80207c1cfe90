"""Samples in batches: what every loader gives, and what calibration, training and evaluation read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from exactq.datasets.leftout import LeftOut, listed, remarks
from exactq.errors import DataError, UsageError

BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples: `inputs` by position, each (n, …), and `labels` (n, …) where there are any; n ≥ 1, all of it finite."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise DataError("a batch has no input: one tensor at least is needed")
        parts = {f"input {position}": tensor for position, tensor in enumerate(self.inputs)}
        parts |= {"labels": self.labels} if self.labels is not None else {}
        for what, tensor in parts.items():
            check(tensor, what)
        if len({tensor.shape[0] for tensor in parts.values()}) > 1:
            sizes = ", ".join(f"{what} {tuple(tensor.shape)}" for what, tensor in parts.items())
            raise DataError(f"a batch differs in its number of samples: {sizes}; the first dimensions must agree")

    def __len__(self) -> int:
        return self.inputs[0].shape[0]

    def first(self, samples: int) -> Batch:
        """The first `samples` samples, or all where there are fewer."""
        return Batch(tuple(x[:samples] for x in self.inputs), None if self.labels is None else self.labels[:samples])


@dataclass(frozen=True, eq=False)
class Indexed:
    """Samples fetched by index: `take(indices)` gives their batch; `order` int64 (n,) says which, in batches of `size`.

    Going through it again gives the same batches again; `shuffled` gives another order. `take` leaves out samples that cannot
    be read, gives None where it can read none of them, and notes them in `left_out`.
    """

    take: Callable[[Tensor], Batch | None]
    order: Tensor
    size: int = BATCH_SIZE
    left_out: LeftOut = field(default_factory=LeftOut)

    def __post_init__(self) -> None:
        if self.order.dtype != torch.int64 or self.order.dim() != 1 or self.order.numel() == 0:
            raise DataError(f"a split needs sample indices, not {self.order.dtype} of shape {tuple(self.order.shape)}")
        if self.size < 1:
            raise UsageError(f"a batch size of {self.size} is none: 1 or more")

    def __iter__(self) -> Iterator[Batch]:
        """The batches. Raises `DataError` at the end where no sample at all could be read."""
        empty = True
        for batch in self.places():
            if batch is not None:
                empty = False
                yield batch
        if empty:
            bad = [self.left_out.found[index] for index in self.order.tolist() if index in self.left_out.found]
            raise DataError(f"none of {self.samples:,} samples can be read: {listed(bad)}; give more of them, or others")

    def places(self) -> Iterator[Batch | None]:
        """What became of each `size` samples: their batch, or None where none of them can be read."""
        return (self.take(self.order[start : start + self.size]) for start in range(0, self.samples, self.size))

    @property
    def samples(self) -> int:
        """The number of samples, those that cannot be read among them."""
        return self.order.numel()

    def first(self, samples: int) -> Indexed:
        """The first `samples` samples, or all where there are fewer. Raises `UsageError` for less than one."""
        _at_least_one(samples)
        return replace(self, order=self.order[:samples])

    def from_readable(self) -> Indexed:
        """The same samples from the first on that can be read, so that the first ones are never none."""
        lone = self.sized(1)
        start = next((place for place, batch in enumerate(lone.places()) if batch is not None), None)
        return self if start is None else replace(self, order=self.order[start:])

    def shuffled(self, seed: int) -> Indexed:
        """The same samples in the order that `seed` gives."""
        return replace(self, order=self.order[torch.randperm(self.samples, generator=torch.Generator().manual_seed(seed))])

    def sized(self, size: int) -> Indexed:
        """The same samples in batches of `size`."""
        return replace(self, size=size)


@dataclass(frozen=True, eq=False)
class Streamed:
    """Batches that come one after another: each call of `make` starts afresh; at most `limit` samples are let through.

    Raises `DataError` at the end of a stream that gave nothing.
    """

    make: Callable[[], Iterator[Batch]]
    limit: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        seen = 0
        for batch in self.make():
            part = batch if self.limit is None else batch.first(self.limit - seen)
            seen += len(part)
            yield part
            if seen == self.limit:
                return
        if seen == 0:
            raise DataError("the data gave no batch: one sample at least is needed")

    def first(self, samples: int) -> Streamed:
        """The first `samples` samples, or all where there are fewer. Raises `UsageError` for less than one."""
        _at_least_one(samples)
        return replace(self, limit=samples if self.limit is None else min(samples, self.limit))


Split = Indexed | Streamed
"""Batches one can go through again and again."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a model is calibrated and evaluated on, and trained where `train` is there; `classes` None where nobody says.

    `at_least` says that there may be more classes than the labels show.
    """

    name: str
    calibration: Split
    evaluation: Split
    train: Split | None = None
    classes: int | None = None
    at_least: bool = False
    first: Batch = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", next(iter(self.calibration)))
        if self.classes is not None and self.first.labels is None:
            raise DataError(f"`{self.name}` counts {self.classes} classes, and its batches have no labels")

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Each input's shape, without the batch."""
        return tuple(tuple(x.shape[1:]) for x in self.first.inputs)

    def remarks(self) -> list[str]:
        """What is to be said about the data so far as it was read, in sentences: which samples had to be left out."""
        splits = (self.calibration, self.evaluation, self.train)
        found = {id(split.left_out): split.left_out for split in splits if isinstance(split, Indexed)}
        return remarks(found.values())


def in_memory(inputs: tuple[Tensor, ...], labels: Tensor | None = None) -> Indexed:
    """The split of all samples of tensors (n, …) that are already there, in their order. Raises `DataError`."""
    whole = Batch(inputs, labels)

    def take(indices: Tensor) -> Batch:
        return Batch(tuple(x[indices] for x in inputs), None if labels is None else labels[indices])

    return Indexed(take, torch.arange(len(whole)))


def check(tensor: Tensor, what: str) -> None:
    """Nothing, or a `DataError` that names `what` and the index of the first value that is not finite."""
    if tensor.dim() == 0 or tensor.numel() == 0:
        raise DataError(f"{what} is empty: its shape is {tuple(tensor.shape)}, one sample at least is needed")
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        index = tuple(int(i) for i in torch.nonzero(~finite)[0])
        value = "NaN" if bool(torch.isnan(tensor[index])) else f"{tensor[index].item()}"
        raise DataError(f"{what} has the value {value} at {index}: finite values are needed")


def tensor_of(value: object, what: str) -> Tensor:
    """The tensor that a model takes for an array or tensor: floats as float32, integers as int64, booleans as they are.

    Raises `DataError` for other kinds (uint8 pixels too: whether they mean 0..255 or 0..1 only their owner knows), for
    empty ones and for values that are not finite, among them those that float32 cannot hold.
    """
    tensor = _numbers(value, what)
    if tensor.is_floating_point():
        tensor = tensor.float()
    elif tensor.dtype in (torch.int32, torch.int64):
        tensor = tensor.long()
    elif tensor.dtype != torch.bool:
        raise DataError(f"{what} is {str(tensor.dtype).removeprefix('torch.')}: models take float32 or int64, convert it first")
    check(tensor, what)
    return tensor


def labels_of(value: object, what: str) -> Tensor:
    """The labels in an array or tensor: floats as float32, everything whole (booleans and uint8 too) as int64. `DataError`."""
    tensor = _numbers(value, what)
    tensor = tensor.float() if tensor.is_floating_point() else tensor.long()
    check(tensor, what)
    return tensor


def _numbers(value: object, what: str) -> Tensor:
    """The tensor of an array or tensor of real numbers. Raises `DataError`."""
    if isinstance(value, Tensor) and not value.is_complex():
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.itemsize <= 8:
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
    kind = value.dtype if isinstance(value, np.ndarray | Tensor) else type(value).__name__
    raise DataError(f"{what} is of kind {kind}: an array or tensor of real numbers is needed")


def _at_least_one(samples: int) -> None:
    if samples < 1:
        raise UsageError(f"{samples} samples are asked for: 1 or more")
