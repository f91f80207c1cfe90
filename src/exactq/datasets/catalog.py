"""All data that can be named, and the door to it: `load("digits")`, `load("npz:mine.npz")`, `load("mine.py:batches")`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from exactq import pythonfile
from exactq.datasets.arrays import npz
from exactq.datasets.cifar10 import cifar10
from exactq.datasets.digits import digits
from exactq.datasets.imagefolder import imagefolder
from exactq.datasets.noise import noise
from exactq.datasets.splits import BATCH_SIZE, Dataset, Indexed, Split
from exactq.datasets.userfile import userfile
from exactq.errors import UsageError, unknown

CALIBRATION = 512
Shapes = tuple[tuple[int, ...], ...]
"""Each input's shape, without the batch."""


@dataclass(frozen=True)
class Request:
    """What a loader is asked for: the text after `NAME:`, samples to calibrate, a seed, the names of the model's inputs.

    `shapes` are those that the model takes, None where nobody knows: for data that can be brought to a size.
    """

    argument: str
    calibration: int
    seed: int
    inputs: tuple[str, ...] | None
    shapes: Shapes | None = None


@dataclass(frozen=True)
class Loader:
    """A kind of data: `usage` as one writes it (`npz:FILE`); `argument` says whether something follows the name."""

    name: str
    usage: str
    argument: bool | None  # None: may follow
    load: Callable[[Request], Dataset]
    description: str


LOADERS = {
    loader.name: loader
    for loader in (
        Loader(
            "digits",
            "digits",
            False,
            lambda r: digits(calibration=r.calibration, seed=r.seed),
            "1,797 handwritten digits 1×8×8 of scikit-learn, offline",
        ),
        Loader(
            "cifar10",
            "cifar10[:DIR]",
            None,
            lambda r: cifar10(r.argument or None, calibration=r.calibration, seed=r.seed),
            "60,000 photographs 3×32×32 in ten classes; parquet files or cifar-10-batches-py in DIR or $EXACTQ_DATA/cifar10",
        ),
        Loader(
            "imagefolder",
            "imagefolder:DIR",
            True,
            lambda r: imagefolder(r.argument, calibration=r.calibration, seed=r.seed, shapes=r.shapes),
            "image files, one folder a class, in train and val or all together; resized, cropped, normalised as for ImageNet",
        ),
        Loader(
            "npz",
            "npz:FILE",
            True,
            lambda r: npz(r.argument, calibration=r.calibration, seed=r.seed, inputs=r.inputs),
            "NumPy arrays named like the model's inputs (or arr_0, arr_1 …), and labels",
        ),
        Loader(
            "noise",
            "noise:SHAPE",
            True,
            lambda r: noise(r.argument, calibration=r.calibration, seed=r.seed),
            "standard normal noise, noise:1,3,224,224: for speed and size only",
        ),
    )
}


def load(
    spec: str,
    *,
    calibration: int = CALIBRATION,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    inputs: tuple[str, ...] | None = None,
    shapes: Shapes | None = None,
) -> Dataset:
    """The data named `spec`: a name in `LOADERS` with what follows it, or `file.py:factory`.

    At most `calibration` samples calibrate; `batch_size` holds where the loader makes the batches, not for a user's own.
    `inputs` and `shapes` are the names and the shapes of the model's inputs, where they are known.
    Same `seed`, same samples in the same order. Raises `UsageError` for bad names and numbers, `DataError` for bad data.
    """
    if calibration < 1:
        raise UsageError(f"{calibration} calibration samples are asked for: 1 or more")
    if pythonfile.is_named(spec):
        dataset = userfile(spec, calibration=calibration)
    else:
        name, colon, argument = spec.partition(":")
        if name not in LOADERS:
            raise unknown("data", spec, [*(loader.usage for loader in LOADERS.values()), "file.py:factory"])
        loader = LOADERS[name]
        if loader.argument is not None and loader.argument != bool(argument) or (colon and not argument):
            raise UsageError(f"data '{spec}' is not complete or too much: write {loader.usage}")
        dataset = loader.load(Request(argument, calibration, seed, inputs, shapes))

    def sized(split: Split) -> Split:
        return split.sized(batch_size) if isinstance(split, Indexed) else split

    return replace(
        dataset,
        calibration=sized(dataset.calibration),
        evaluation=sized(dataset.evaluation),
        train=None if dataset.train is None else sized(dataset.train),
    )
