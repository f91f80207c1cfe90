"""A user's own images: `DIR/train/CLASS/*.jpg` and `DIR/val/CLASS/*.jpg`, or `DIR/CLASS/*.jpg` all together.

Each image is brought to the model's size as networks for ImageNet are evaluated: the shorter side to 256/224 of it, the
centre cut out, x = (pixel / 255 − mean) / std. An image is decoded when its batch is asked for and not kept.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from exactq.datasets.splits import Batch, Dataset, Indexed
from exactq.errors import DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
TRAIN, HELD = "train", ("val", "validation", "test")
SHAPE = (3, 224, 224)
NORMS = {3: ("RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ("L", (0.449,), (0.226,))}
"""Channels -> the mode, mean and deviation; those of grey are the means of the three."""
MARGIN = (256, 224)
HELD_SHARE = 5  # one image in five is held back where nobody divided them

Labelled = list[tuple[Path, int]]
"""Image files with their classes."""


def imagefolder(place: str, *, calibration: int, seed: int, shapes: tuple[tuple[int, ...], ...] | None = None) -> Dataset:
    """Training images, `calibration` of them (chosen by `seed`) to calibrate, and the others to evaluate.

    Inputs float32 (n, channels, height, width) of the one shape in `shapes`, 3×224×224 without it; one channel is grey. The
    classes are the folders in the order of their names (that of ImageNet's trained models for its thousand `n0…` folders).
    Without a `train` beside `val` (or `validation`, `test`), a fifth of each class, chosen by `seed`, evaluates.
    Raises `DataError` for folders without images, and for an image that cannot be decoded, by its name.
    """
    shape = _image_shape(place, shapes)
    root = Path(place)
    held = next((root / name for name in HELD if (root / name).is_dir()), None)
    if (root / TRAIN).is_dir() and held is not None:
        classes = _classes(root / TRAIN)
        seen, kept = _labelled(root / TRAIN, classes), _labelled(held, classes)
    else:
        whole = root / TRAIN if (root / TRAIN).is_dir() else held or root
        classes = _classes(whole)
        seen, kept = _divided(_labelled(whole, classes), seed)
    train, evaluation = (_split(part, shape) for part in (seen, kept))
    return Dataset(f"imagefolder:{place}", train.shuffled(seed).first(calibration), evaluation, train, classes=len(classes))


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
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(f"{folder} has no folder in it: imagefolder:DIR wants a folder of images for each class")
    return names


def _labelled(folder: Path, classes: list[str]) -> Labelled:
    """All images with their classes, sorted by class and path. Raises `DataError` for classes that are empty or not known."""
    unknown = [name for name in _classes(folder) if name not in classes]
    if unknown:
        raise DataError(f"{folder} has the class '{unknown[0]}', which the training images do not have")
    found: Labelled = []
    for label, name in enumerate(classes):
        files = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        files = [path for path in files if not path.name.startswith(".")]
        if not files:
            raise DataError(f"{folder / name} has no image ({' '.join(SUFFIXES)}): each class needs one at least")
        found += [(path, label) for path in files]
    return found


def _divided(images: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """The images to train on, and the fifth of each class, one at least, to evaluate. A lone image of a class does both."""
    generator = torch.Generator().manual_seed(seed)
    seen: Labelled = []
    held: Labelled = []
    for label in sorted({label for _, label in images}):
        files = [image for image in images if image[1] == label]
        order = torch.randperm(len(files), generator=generator).tolist()
        count = max(1, len(files) // HELD_SHARE)
        held += [files[index] for index in sorted(order[:count])]
        seen += [files[index] for index in sorted(order[count:] or order)]
    return seen, held


def _split(images: Labelled, shape: tuple[int, int, int]) -> Indexed:
    labels = torch.tensor([label for _, label in images])
    return Indexed(partial(_take, images, labels, shape), torch.arange(len(images)))


def _take(images: Labelled, labels: Tensor, shape: tuple[int, int, int], indices: Tensor) -> Batch:
    """The batch of some images, decoded now."""
    _, mean, std = NORMS[shape[0]]
    pixels = torch.stack([_pixels(images[index][0], shape) for index in indices.tolist()])
    centred = pixels.float() / 255 - torch.tensor(mean).view(1, -1, 1, 1)
    return Batch((centred / torch.tensor(std).view(1, -1, 1, 1),), labels[indices])


def _pixels(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """The image in a file, uint8 of that shape. Raises `DataError`."""
    channels, height, width = shape
    try:
        with Image.open(path) as file:
            image = file.convert(NORMS[channels][0])
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise DataError(f"{path} cannot be decoded: {(str(e).splitlines() or [type(e).__name__])[0]}") from e
    image = image.resize(_covering(image.size, (width, height)), Image.Resampling.BILINEAR)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    array = np.array(image.crop((left, top, left + width, top + height)))
    return torch.from_numpy(array).view(height, width, channels).permute(2, 0, 1)


def _covering(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """The size, of the same proportions but for a pixel, that covers 256/224 of `wanted`; both are (width, height).

    >>> _covering((500, 375), (224, 224))
    (341, 256)
    """
    across, down = (side * MARGIN[0] // MARGIN[1] for side in wanted)
    if across * size[1] >= down * size[0]:
        return across, size[1] * across // size[0]
    return size[0] * down // size[1], down
