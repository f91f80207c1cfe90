"""Data that a user's own function makes: `file.py:factory`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from exactq import pythonfile
from exactq.datasets.splits import Batch, Dataset, Split, Streamed, labels_of, tensor_of
from exactq.errors import DataError, unknown

SPLITS = ("calibration", "evaluation", "train")


def userfile(spec: str, *, calibration: int) -> Dataset:
    """What the factory returns: a `Dataset`, one loader for all, or a dict of loaders `calibration`, `evaluation`, `train`.

    A loader is a list, a `DataLoader`, or a function that starts a new iterator; each item a tensor (n, …), a pair
    (inputs, labels) in which inputs may be a tuple and labels None, or a `Batch`. At most `calibration` samples calibrate.
    How many classes there are is not known. Raises `DataError` with file and line for what fails inside.
    """
    factory = pythonfile.function(spec, DataError)
    with pythonfile.told(spec, DataError):
        made = factory()
    if isinstance(made, Dataset):
        return replace(made, calibration=made.calibration.first(calibration))
    loaders = made if isinstance(made, Mapping) else {"calibration": made, "evaluation": made}
    for name in loaders:
        if name not in SPLITS:
            raise unknown(f"split of `{spec}`", str(name), SPLITS)
    splits = {name: _split(spec, loader) for name, loader in loaders.items()}
    seen = splits.get("calibration") or splits.get("train")
    if seen is None or "evaluation" not in splits:
        raise DataError(f"`{spec}` gave {', '.join(splits) or 'no loader'}: evaluation and calibration (or train) are needed")
    return Dataset(spec, seen.first(calibration), splits["evaluation"], splits.get("train"))


def _split(spec: str, loader: object) -> Split:
    """The loader as a split that can be gone through again. Raises `DataError` for one that cannot."""
    if not callable(loader) and (not isinstance(loader, Iterable) or isinstance(loader, Iterator | Tensor | str)):
        raise DataError(
            f"`{spec}` gave a {type(loader).__name__}: data is gone through more than once, so give a list of batches, a "
            "DataLoader, or a function that starts a new iterator"
        )
    start: Callable[[], Iterable[object]] = loader if callable(loader) else lambda: loader

    def batches() -> Iterator[Batch]:
        with pythonfile.told(spec, DataError):
            for position, item in enumerate(start()):
                yield _batch(item, f"`{spec}`: batch {position}")

    return Streamed(batches)


def _batch(item: object, what: str) -> Batch:
    """The item that a user's loader gave, as a batch. Raises `DataError`."""
    if isinstance(item, Batch):
        return item
    pair = item if isinstance(item, tuple | list) else (item, None)
    if len(pair) != 2:
        raise DataError(f"{what} is a {type(item).__name__} of {len(pair)}: give (inputs, labels), several inputs as a tuple")
    inputs, labels = pair
    several = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    tensors = tuple(tensor_of(value, f"{what}, input {position}") for position, value in enumerate(several))
    try:
        return Batch(tensors, None if labels is None else labels_of(labels, f"{what}, labels"))
    except DataError as e:
        raise DataError(f"{what}: {e}") from e
