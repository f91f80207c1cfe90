"""A user's arrays in a NumPy `.npz` file: the inputs, and `labels` where there are any."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from exactq.datasets.splits import Dataset, in_memory, labels_of, tensor_of
from exactq.errors import DataError

LABELS = "labels"


def npz(place: str, *, calibration: int, seed: int, inputs: tuple[str, ...] | None = None) -> Dataset:
    """Half of the samples (chosen by `seed`) to calibrate and train, the other half to evaluate; a lone sample does both.

    The arrays are named like the model's `inputs`, or by position as `numpy.savez` names them (`arr_0`, `arr_1` …), or
    there is just one. Floats are read as float32, int32 and int64 as int64. Whole labels (n,) ≥ 0 are classes. Nothing is
    ever unpickled. Raises `DataError` for files that cannot be read, arrays that do not fit and values that are not finite.
    """
    arrays = _read(Path(place))
    labels = labels_of(arrays.pop(LABELS), f"{place}: array '{LABELS}'") if LABELS in arrays else None
    names = _order(place, arrays, inputs)
    tensors = tuple(tensor_of(arrays[name], f"{place}: array '{name}'") for name in names)
    sizes = {name: tensor.shape[0] for name, tensor in zip(names, tensors, strict=True)}
    sizes |= {LABELS: labels.shape[0]} if labels is not None else {}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
        raise DataError(f"{place}: the arrays differ in their number of samples: {said}")
    whole = in_memory(tensors, labels).shuffled(seed)
    half = max(1, whole.samples // 2)
    seen = whole.first(half)
    held = replace(whole, order=whole.order[half:] if half < whole.samples else whole.order)
    return Dataset(
        f"npz:{place}", seen.first(calibration), held, None if labels is None else seen, _classes(labels), at_least=True
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of the file. Raises `DataError`."""
    if not path.is_file():
        raise DataError(f"there is no file {path}: npz:FILE wants one that `numpy.savez` wrote")
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise DataError(f"{path} is a single array: write it with numpy.savez, which names its arrays")
            with file:
                return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as e:
        if "Object arrays" in str(e) or ("allow_pickle" in str(e) and _is_pickle(path)):
            raise DataError(f"{path} holds pickled objects, which can carry code: refused, nothing was run") from e
        if "allow_pickle" in str(e):  # what numpy says of any file that is neither an archive nor an array
            raise DataError(f"{path} is no .npz file: it is damaged, or of another kind") from e
        raise DataError(f"{path} cannot be read as .npz: {e}") from e


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as pickles do, those of the oldest kind apart, which are text."""
    with path.open("rb") as stream:
        return stream.read(1) == b"\x80"


def _order(place: str, arrays: Mapping[str, object], inputs: tuple[str, ...] | None) -> list[str]:
    """The arrays' names in the order of the model's inputs. Raises `DataError`."""
    if not arrays:
        raise DataError(f"{place} holds no input array")
    if len(arrays) == 1:
        return list(arrays)
    if inputs is not None and set(inputs[: len(arrays)]) == set(arrays):
        return list(inputs[: len(arrays)])
    positions = [f"arr_{position}" for position in range(len(arrays))]
    if set(positions) == set(arrays):
        return positions
    wanted = f"like the model's inputs ({', '.join(inputs)})" if inputs else "like the model's inputs"
    raise DataError(f"{place} holds the arrays {', '.join(arrays)}: name them {wanted} or arr_0, arr_1 …, and '{LABELS}'")


def _classes(labels: Tensor | None) -> int | None:
    """One more than the largest label, where labels are whole, one a sample, and not negative."""
    if labels is None or labels.dim() != 1 or labels.dtype != torch.int64 or int(labels.min()) < 0:
        return None
    return int(labels.max()) + 1
