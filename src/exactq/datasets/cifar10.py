"""CIFAR-10: 50,000 training and 10,000 test images 3×32×32, from the hub's parquet files or from its authors' own.

The parquet files have the columns `img: {bytes, path}` and `label`; `cifarbatches` reads the others. Inputs are normalised
with ImageNet's mean and deviation, x = (pixel / 255 − mean) / std, as the trained CIFAR ResNets of
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

from exactq.datasets.cifarbatches import FOLDERS, batch_files, read_batches
from exactq.datasets.splits import Batch, Dataset, Indexed
from exactq.errors import DataError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
FILES = {"train": "train-00000-of-00001.parquet", "test": "test-00000-of-00001.parquet"}


def cifar10(place: str | None = None, *, calibration: int, seed: int) -> Dataset:
    """Training images, `calibration` of them (chosen by `seed`) to calibrate, and all test images to evaluate.

    The files are looked for in `place`, else in `$EXACTQ_DATA/cifar10`, and there also in the folder that the authors'
    archive unpacks to (`cifar-10-batches-py`), which is where torchvision has them. Inputs float32 (n, 3, 32, 32), labels
    int64 (n,). Images of parquet files are decoded when first asked for and kept, so calibrating decodes no more than it
    needs. Raises `DataError` for files that are missing, truncated, or of another schema, and for images that cannot be read.
    """
    folder = _folder(place)
    original = None if (folder / FILES["train"]).is_file() else batch_files(folder)
    if original is not None:
        train, test = (_of_batches(original[part], tuple(_stamp(file) for file in original[part])) for part in FILES)
    else:
        train, test = (_of_parquet(file, _stamp(file)) for file in (_present(folder, name) for name in FILES.values()))
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
            f"or the authors' folder {FOLDERS[0]}, or name their folder with cifar10:DIR or EXACTQ_DATA (the folder above "
            "cifar10)"
        )
    return folder / file


def _stamp(path: Path) -> tuple[int, int]:
    """What changes with the file: what was read of one is remembered under it."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=4)
def _of_batches(files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> Indexed:
    """All images of the authors' files, in their order."""
    pixels, labels = read_batches(files)
    _check_labels(labels, files[0].parent)
    return Indexed(lambda indices: _normalised(pixels[indices], labels[indices]), torch.arange(len(pixels)))


@lru_cache(maxsize=4)
def _of_parquet(path: Path, stamp: tuple[int, int]) -> Indexed:
    """All images of one parquet file, in its order, decoded when they are first asked for."""
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
    _check_labels(labels, path)
    pixels = torch.empty(len(encoded), 32, 32, 3, dtype=torch.uint8)

    def take(indices: Tensor) -> Batch:
        for index in indices.tolist():
            if encoded[index] is not None:
                pixels[index] = _decode(encoded[index], f"{path}: image {index}")
                encoded[index] = None  # decoded: the pixels stand in its place
        return _normalised(pixels[indices], labels[indices])

    return Indexed(take, torch.arange(len(encoded)))


def _check_labels(labels: Tensor, path: Path) -> None:
    """Nothing, or a `DataError` that names the first label that is none."""
    wrong = torch.nonzero((labels < 0) | (labels > 9))
    if len(wrong):
        index = int(wrong[0, 0])
        raise DataError(f"{path} gives image {index} the label {int(labels[index])}: CIFAR-10 has 0..9")


def _normalised(pixels: Tensor, labels: Tensor) -> Batch:
    """The batch of pixels uint8 (n, 32, 32, 3)."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return Batch(((pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std,), labels)


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
