"""Standard normal noise of any shape: for studies of speed and size, where there is nothing to be right about."""

from __future__ import annotations

import torch
from torch import Tensor

from exactq.datasets.splits import Batch, Dataset, Indexed
from exactq.errors import UsageError

SAMPLES = 1024


def noise(shapes: str, *, calibration: int, seed: int) -> Dataset:
    """1,024 samples without labels, the first `calibration` to calibrate, the last 256 to evaluate.

    `shapes` is written as for `--input-shape`: the batch first (it is not used here), inputs separated by `;`. A sample is
    a function of `seed` and its index alone, and made when asked for: images 3×224×224 need no memory.
    """
    parsed = parse_shapes(shapes)

    def one(index: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed * SAMPLES + index)
        return [torch.randn(shape[1:], generator=generator) for shape in parsed]

    def take(indices: Tensor) -> Batch:
        samples = [one(index) for index in indices.tolist()]
        return Batch(tuple(torch.stack(column) for column in zip(*samples, strict=True)))

    whole = Indexed(take, torch.arange(SAMPLES))
    held = Indexed(take, torch.arange(SAMPLES - 256, SAMPLES))
    return Dataset(f"noise:{shapes}", whole.first(min(calibration, SAMPLES - 256) if calibration > 0 else calibration), held)


def parse_shapes(text: str) -> tuple[tuple[int, ...], ...]:
    """Shapes written `1,3,32,32`, several separated by `;`. Raises `UsageError` for anything else.

    >>> parse_shapes("1,3,32,32; 1,16")
    ((1, 3, 32, 32), (1, 16))
    """
    parts = [[size.strip() for size in part.split(",")] for part in text.split(";")]
    if not all(size.isdecimal() and int(size) > 0 for part in parts for size in part):
        raise UsageError(f"'{text}' is no input shape: write sizes ≥ 1 as 1,3,32,32 (batch first), inputs separated by ;")
    return tuple(tuple(int(size) for size in part) for part in parts)


def noise_of(shapes: tuple[tuple[int, ...], ...]) -> str:
    """The name of the noise for inputs of these shapes, given without the batch.

    >>> noise_of(((3, 32, 32), (16,)))
    'noise:1,3,32,32;1,16'
    """
    return "noise:" + written(shapes)


def written(shapes: tuple[tuple[int, ...], ...]) -> str:
    """Shapes, given without the batch, as `--input-shape` takes them."""
    return ";".join(",".join(str(size) for size in (1, *shape)) for shape in shapes)
