"""A user's own images: `DIR/train/CLASS/*.jpg` and `DIR/val/CLASS/*.jpg`, or `DIR/CLASS/*.jpg` all together.

Each image is brought to the model's size as networks for ImageNet are evaluated: the shorter side to 256/224 of it, the
centre cut out, x = (pixel / 255 − mean) / std. An image is decoded when its batch is asked for and not kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from exactq.datasets.images import decoded
from exactq.datasets.leftout import LeftOut, Samples, UnreadableError
from exactq.datasets.splits import Batch, Dataset, Indexed
from exactq.errors import DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
TRAIN, HELD = "train", ("val", "validation", "test")
SHAPE = (3, 224, 224)
NORMS = {3: ("RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ("L", (0.449,), (0.226,))}
"""Channels -> the mode, mean and deviation; those of grey are the means of the three."""
MARGIN = (256, 224)
HELD_SHARE = 5  # one image in five is held back where nobody divided them

MOST = 2**24
"""Images of extreme proportions cover a size with billions of pixels: above this only the part that is kept is computed."""


@dataclass(frozen=True)
class _Album:
    """Image files below `root` with their classes, sorted by class and path."""

    root: Path
    classes: tuple[str, ...]
    images: tuple[tuple[Path, int], ...]

    @property
    def labels(self) -> Tensor:
        """The class of each image, int64 (n,)."""
        return torch.tensor([label for _, label in self.images])


def imagefolder(place: str, *, calibration: int, seed: int, shapes: tuple[tuple[int, ...], ...] | None = None) -> Dataset:
    """Training images, `calibration` of them (chosen by `seed`) to calibrate, and the others to evaluate.

    Inputs float32 (n, channels, height, width) of the one shape in `shapes`, 3×224×224 without it; one channel is grey. The
    classes are the folders in the order of their names (that of ImageNet's trained models for its thousand `n0…` folders).
    Without a `train` beside `val` (or `validation`, `test`), a fifth of each class, chosen by `seed`, evaluates.
    An image that cannot be decoded is left out. Raises `DataError` for folders without images, for a class of which no image
    can be decoded, and for files that vanish.
    """
    shape = _image_shape(place, shapes)
    root = Path(place)
    held = next((root / name for name in HELD if (root / name).is_dir()), None)
    if (root / TRAIN).is_dir() and held is not None:
        classes = _classes(root / TRAIN)
        train, evaluation = (_split(_album(root, part, classes), shape) for part in (root / TRAIN, held))
    else:
        whole = root / TRAIN if (root / TRAIN).is_dir() else held or root
        classes = _classes(whole)
        album = _album(root, whole, classes)
        seen, kept = _divided(album.labels, seed)
        both = _split(album, shape)
        train, evaluation = replace(both, order=seen), replace(both, order=kept)
    first = train.shuffled(seed).from_readable().first(calibration)
    return Dataset(f"imagefolder:{place}", first, evaluation, train, classes=len(classes))


def _image_shape(place: str, shapes: tuple[tuple[int, ...], ...] | None) -> tuple[int, int, int]:
    """The shape that images are brought to. Raises `DataError` where the model takes something else than one image."""
    if shapes is None:
        return SHAPE
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][0] not in NORMS:
        said = "; ".join("×".join(str(size) for size in shape) for shape in shapes)
        raise DataError(f"`imagefolder:{place}` gives one image of 3 channels or 1, and the model takes {said}")
    channels, height, width = shapes[0]
    return channels, height, width


def _classes(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted. Raises `DataError`."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: imagefolder:DIR wants one with a folder of images for each class")
    names = [path.name for path in _entries(folder) if path.is_dir()]
    if not names:
        raise DataError(f"{folder} has no folder in it: imagefolder:DIR wants a folder of images for each class")
    return names


def _album(root: Path, folder: Path, classes: list[str]) -> _Album:
    """All images in `folder`. Raises `DataError` for classes that are empty or not known."""
    unknown = [name for name in _classes(folder) if name not in classes]
    if unknown:
        raise DataError(f"{folder} has the class '{unknown[0]}', which the training images do not have")
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        files = sorted(_images(folder / name, ())) if (folder / name).is_dir() else []
        if not files:
            raise DataError(f"{folder / name} has no image ({' '.join(SUFFIXES)}): each class needs one at least")
        found += [(path, label) for path in files]
    return _Album(root, tuple(classes), tuple(found))


def _images(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The image files in a folder and in those below, links followed; a link back to a folder `above` leads nowhere.

    Links to files that are not there count: they cannot be read, and are told.
    """
    here = folder.resolve()
    if here in above:
        return
    for path in _entries(folder):
        if path.is_dir():
            yield from _images(path, (*above, here))
        elif path.suffix.lower() in SUFFIXES and (path.is_file() or (path.is_symlink() and not path.exists())):
            yield path


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden ones. Raises `DataError`."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as e:
        raise DataError(f"{folder} cannot be read: {e.strerror}") from e


def _divided(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on, and a fifth of each class, one at least, to evaluate. A lone image of a class does both."""
    generator = torch.Generator().manual_seed(seed)
    seen: list[int] = []
    held: list[int] = []
    for label in sorted(set(labels.tolist())):
        members = torch.nonzero(labels == label).flatten().tolist()
        order = torch.randperm(len(members), generator=generator).tolist()
        count = max(1, len(members) // HELD_SHARE)
        held += [members[place] for place in sorted(order[:count])]
        seen += [members[place] for place in sorted(order[count:] or order)]
    return torch.tensor(seen), torch.tensor(held)


def _split(album: _Album, shape: tuple[int, int, int]) -> Indexed:
    """All images of the album, in its order, decoded when their batch is asked for."""
    left_out = LeftOut()
    samples = Samples(
        lambda index: _pixels(album.images[index][0], shape),
        lambda index: str(album.images[index][0].relative_to(album.root)),
        album.labels,
        album.classes,
    )

    def take(indices: Tensor) -> Batch | None:
        found = samples.those_readable(indices, left_out)
        return None if found is None else _normalised(*found)

    return Indexed(take, torch.arange(len(album.images)), left_out=left_out)


def _normalised(pixels: Tensor, labels: Tensor) -> Batch:
    """The batch of pixels uint8 (n, channels, height, width)."""
    _, mean, std = NORMS[pixels.shape[1]]
    centred = pixels.float() / 255 - torch.tensor(mean).view(1, -1, 1, 1)
    return Batch((centred / torch.tensor(std).view(1, -1, 1, 1),), labels)


def _pixels(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """The image in a file, uint8 of that shape. Raises `UnreadableError`, and `DataError` for a file that is gone."""
    channels, height, width = shape
    try:
        image = decoded(path, NORMS[channels][0])
    except OSError as e:
        if path.is_symlink() and not path.exists():
            raise UnreadableError("a link to nothing") from e
        raise DataError(f"{path} cannot be read: {e.strerror}; it was there when the run began") from e
    array = np.array(_centre(image, (width, height)))
    return torch.from_numpy(array).view(height, width, channels).permute(2, 0, 1)


def _centre(image: Image.Image, wanted: tuple[int, int]) -> Image.Image:
    """The image resized so that it covers 256/224 of `wanted` (width, height), and the centre cut out."""
    (width, height), (across, down) = wanted, _covering(image.size, wanted)
    left, top = round((across - width) / 2), round((down - height) / 2)
    if across * down <= MOST:
        resized = image.resize((across, down), Image.Resampling.BILINEAR)
        return resized.crop((left, top, left + width, top + height))
    x, y = image.width / across, image.height / down
    return image.resize(wanted, Image.Resampling.BILINEAR, (left * x, top * y, (left + width) * x, (top + height) * y))


def _covering(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """The size, of the same proportions but for a pixel, that covers 256/224 of `wanted`; both are (width, height).

    >>> _covering((500, 375), (224, 224))
    (341, 256)
    """
    across, down = (side * MARGIN[0] // MARGIN[1] for side in wanted)
    if across * size[1] >= down * size[0]:
        return across, size[1] * across // size[0]
    return size[0] * down // size[1], down
