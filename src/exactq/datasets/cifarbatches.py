"""CIFAR-10 as its authors publish it: five training files and a test file, Python pickles or binary records.

A pickle can call any function when it is read. Here it can call none: the three names that a pickled array needs stand for
records that only remember what they are given, every other name is refused, and the array is made from the bytes afterwards.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exactq.errors import DataError

FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = ("test_batch",)
PIXELS = 3 * 32 * 32


def batch_files(folder: Path) -> dict[str, tuple[Path, ...]] | None:
    """The files of `train` and `test` in the folder, or in the one that the archives unpack to; None where there are none.

    Raises `DataError` where some of the files are there and others are missing.
    """
    for place in (folder, *(folder / name for name in FOLDERS)):
        for suffix in ("", ".bin"):
            files = {part: tuple(place / (n + suffix) for n in names) for part, names in (("train", TRAIN), ("test", TEST))}
            missing = [file for part in files.values() for file in part if not file.is_file()]
            if not missing:
                return files
            if len(missing) <= len(TRAIN):
                raise DataError(f"`cifar10` is incomplete: {missing[0]} is missing; unpack the archive again")
    return None


def read_batches(files: tuple[Path, ...]) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (n, 32, 32, 3) and labels int64 (n,) of all the files in their order. Raises `DataError`."""
    parts = [_read_records(file) if file.suffix == ".bin" else _read_pickle(file) for file in files]
    planes = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in parts])
    return torch.from_numpy(planes.transpose(0, 2, 3, 1).copy()), torch.from_numpy(labels)


def _read_records(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """A binary file: a byte of label and 3,072 bytes of pixels, again and again."""
    data = np.frombuffer(file.read_bytes(), np.uint8)
    if data.size == 0 or data.size % (1 + PIXELS):
        raise DataError(f"{file} has {data.size:,} bytes: CIFAR-10 has {1 + PIXELS:,} for each image")
    records = data.reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _read_pickle(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dict with `data` uint8 (n, 3072) and `labels`, a list of n numbers."""
    try:
        with file.open("rb") as stream:
            content: Any = _Restricted(stream, encoding="bytes").load()
    except _RefusedError as e:
        raise DataError(f"{file} names `{e}`, which is code and no part of CIFAR-10: refused, nothing was run") from e
    except Exception as e:  # the reader fails in many ways on bad input: EOFError, KeyError, IndexError, UnpicklingError …
        raise DataError(f"{file} cannot be read as a batch of CIFAR-10, it is damaged or incomplete: {_first_line(e)}") from e
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}: a batch of CIFAR-10 is a dict with data and labels")
    named = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    pixels, labels = _bytes_of(named.get("data")), named.get("labels")
    if pixels is None or not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{file} has no uint8 array `data` (n, {PIXELS}) or no list of numbers `labels`")
    if len(pixels) != len(labels) or not labels or not all(0 <= label < 2**31 for label in labels):
        raise DataError(f"{file} has {len(pixels)} images and {len(labels)} labels: one each is needed, 0..9")
    return pixels, np.array(labels, np.int64)


class _RefusedError(Exception):
    """A pickle named something else than the parts of an array."""


class _Record:
    """What a pickle made of a name: the arguments of its call and the state it was given; nothing happens with either."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Restricted(pickle.Unpickler):
    """Reads numbers, strings, lists, tuples and dicts, and arrays as records."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        """A record's class of its own for each name, so that one file cannot change what the next one is read with."""
        arrays = {"numpy.core.multiarray": ("_reconstruct",), "numpy._core.multiarray": ("_reconstruct",)}
        if name in (*arrays.get(module, ()), *(("ndarray", "dtype") if module == "numpy" else ())):
            return type(name, (_Record,), {})
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for readers of protocol 2
            return _encoded
        raise _RefusedError(f"{module}.{name}")


def _encoded(text: object, encoding: object) -> bytes:
    """The bytes that protocol 2 wrote as text: latin-1 and nothing else."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("bytes are not written as latin1")
    return text.encode("latin1")


def _bytes_of(record: object) -> np.ndarray | None:
    """The array uint8 (n, 3072) whose state (version, shape, dtype, Fortran order, bytes) the record remembers, else None."""
    state = record.state if isinstance(record, _Record) else None
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, kind, fortran, data = state
    if not isinstance(kind, _Record) or kind.arguments[:1] not in (("u1",), (b"u1",)) or not isinstance(data, bytes):
        return None
    if shape != (len(data) // PIXELS, PIXELS) or len(data) % PIXELS:
        return None
    return np.frombuffer(data, np.uint8).reshape(-1, PIXELS, order="F" if fortran else "C")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
