"""CIFAR-10: 50,000 training and 10,000 test images 3×32×32, from the hub's parquet files or from its authors' own.

The parquet files have the columns `img: {bytes, path}` and `label`; `cifarbatches` reads the others. Inputs are normalised
with ImageNet's mean and deviation, x = (pixel / 255 − mean) / std, as the trained CIFAR ResNets of
github.com/akamaster/pytorch_resnet_cifar10 expect.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from exactq.datasets.cifarbatches import FOLDERS, batch_files, read_batches
from exactq.datasets.images import decoded
from exactq.datasets.leftout import LeftOut, Samples, UnreadableError
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
    needs; one that cannot be decoded is left out. Raises `DataError` for files that are missing, truncated, or of another
    schema, for images of another size, and where no image of a class can be decoded.
    """
    folder = _folder(place)
    original = None if (folder / FILES["train"]).is_file() else batch_files(folder)
    if original is not None:
        train, test = (_of_batches(original[part], tuple(_stamp(file) for file in original[part])) for part in FILES)
    else:
        train, test = (_of_parquet(file, _stamp(file)) for file in (_present(folder, name) for name in FILES.values()))
    return Dataset("cifar10", train.shuffled(seed).from_readable().first(calibration), test, train, classes=10)


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


def _of_parquet(path: Path, stamp: tuple[int, int]) -> Indexed:
    """All images of one parquet file, in its order, decoded when they are first asked for."""
    images, left_out = _images(path, stamp), LeftOut()

    def take(indices: Tensor) -> Batch | None:
        found = images.those_readable(indices, left_out)
        return None if found is None else _normalised(*found)

    return Indexed(take, torch.arange(len(images.labels)), left_out=left_out)


@lru_cache(maxsize=4)
def _images(path: Path, stamp: tuple[int, int]) -> Samples:
    """The images of one parquet file, uint8 (32, 32, 3) each; those that were decoded are kept."""
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
    done: set[int] = set()

    def read(index: int) -> Tensor:
        if index not in done:
            pixels[index] = _decode(encoded[index], f"{path}: image {index}")
            done.add(index)
            encoded[index] = None  # the pixels stand in its place
        return pixels[index]

    return Samples(read, lambda index: f"{path.name}: image {index}", labels, [str(label) for label in range(10)])


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


def _decode(data: bytes | None, what: str) -> Tensor:
    """The pixels of an image file, uint8 (32, 32, 3). Raises `UnreadableError`, and `DataError` for another size."""
    if data is None:
        raise UnreadableError("no bytes")
    image = decoded(data, "RGB")
    if image.size != (32, 32):
        raise DataError(f"{what} is {image.width}×{image.height}: CIFAR-10 has 32×32; imagefolder:DIR brings images to a size")
    return torch.from_numpy(np.array(image))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
