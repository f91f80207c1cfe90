"""CIFAR-10 in the hub's parquet files (`img: {bytes, path}`, `label`): 50,000 training and 10,000 test images 3×32×32.

Inputs are normalised with ImageNet's mean and deviation, x = (pixel / 255 − mean) / std, as the trained CIFAR ResNets of
github.com/akamaster/pytorch_resnet_cifar10 expect.
"""

from __future__ import annotations

import io
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from exactq.datasets.splits import Batch, Dataset, Indexed
from exactq.errors import DataError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
FILES = {"train": "train-00000-of-00001.parquet", "test": "test-00000-of-00001.parquet"}


def cifar10(place: str | None = None, *, calibration: int, seed: int) -> Dataset:
    """Training images, `calibration` of them (chosen by `seed`) to calibrate, and all test images to evaluate.

    The files are looked for in `place`, else in `$EXACTQ_DATA/cifar10`. Inputs float32 (n, 3, 32, 32), labels int64 (n,).
    Images are decoded when first asked for and kept, so calibrating decodes no more than it needs. Raises `DataError` for
    files that are missing, truncated, or of another schema, and for images that cannot be read.
    """
    folder = _folder(place)
    train, test = (_split(_present(folder, file)) for file in FILES.values())
    return Dataset("cifar10", train.shuffled(seed).first(calibration), test, train, classes=10)


def _folder(place: str | None) -> Path:
    """The folder to read, or a `DataError` that says how to name one."""
    base = os.environ.get("EXACTQ_DATA")
    if place is None and not base:
        raise DataError(
            f"`cifar10` is not here: set EXACTQ_DATA to the folder above cifar10/{FILES['test']}, or write cifar10:DIR"
        )
    return Path(place) if place is not None else Path(base or "") / "cifar10"


def _present(folder: Path, file: str) -> Path:
    """The file, or a `DataError` that says what belongs there."""
    if not (folder / file).is_file():
        raise DataError(
            f"`cifar10` is not in {folder}: {file} is missing. Put the hub's files {' and '.join(FILES.values())} there, "
            "or name their folder with cifar10:DIR or EXACTQ_DATA (the folder above cifar10)"
        )
    return folder / file


def _split(path: Path) -> Indexed:
    """All images of one file, in its order."""
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, changed: int, size: int) -> Indexed:
    """`_split`, remembered for a file that did not change, with the images it has decoded."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, columns=["img", "label"])
        encoded = table["img"].combine_chunks().field("bytes").to_pylist()
        labels = torch.tensor(table["label"].to_pylist(), dtype=torch.int64)
    except (pyarrow.ArrowException, OSError, KeyError, ValueError, TypeError) as e:
        raise DataError(f"{path} cannot be read as CIFAR-10 (`img: {{bytes, path}}`, `label`): {_first_line(e)}") from e
    if not encoded:
        raise DataError(f"{path} holds no image")
    if bool(((labels < 0) | (labels > 9)).any()):
        index = int(torch.nonzero((labels < 0) | (labels > 9))[0, 0])
        raise DataError(f"{path} gives image {index} the label {int(labels[index])}: CIFAR-10 has 0..9")
    pixels = torch.empty(len(encoded), 32, 32, 3, dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))

    def take(indices: Tensor) -> Batch:
        for index in indices.tolist():
            if encoded[index] is not None:
                pixels[index] = _decode(encoded[index], f"{path}: image {index}")
                encoded[index] = None  # decoded: the pixels stand in its place
        reals = pixels[indices].permute(0, 3, 1, 2).float() / 255
        return Batch(((reals - mean) / std,), labels[indices])

    return Indexed(take, torch.arange(len(encoded)))


def _decode(data: bytes, what: str) -> Tensor:
    """The pixels of an image file, uint8 (32, 32, 3). Raises `DataError`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise DataError(f"{what} cannot be decoded: {_first_line(e)}") from e
    if pixels.shape != (32, 32, 3):
        raise DataError(f"{what} is {pixels.shape[1]}×{pixels.shape[0]}: CIFAR-10 has 32×32")
    return torch.from_numpy(pixels)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
