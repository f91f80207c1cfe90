"""The models that are built in, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from exactq.errors import DataError, unknown
from exactq.models.cifar_resnet import CifarResNet
from exactq.models.resnet18 import ResNet18
from exactq.models.simplecnn import SimpleCNN

Shape = tuple[int, int, int]
"""(channels, height, width)"""


@dataclass(frozen=True)
class Builtin:
    """A classifier of images: `factory(shape=…, classes=…)`, and the shape, the classes and the data that it was made for.

    `data` is what weights from outside are measured on, None where exactq has no loader for it; `smallest` is the least
    height and width.
    """

    name: str
    factory: Callable[..., nn.Module]
    shape: Shape
    classes: int
    data: str | None
    description: str
    smallest: int = 1

    def __post_init__(self) -> None:
        if min(self.shape[1:]) < self.smallest:
            raise DataError(f"`{self.name}` takes images of {self.smallest}×{self.smallest} or more, not {self.shape}")


MODELS = {
    model.name: model
    for model in (
        Builtin("simplecnn", SimpleCNN, (1, 8, 8), 10, "digits", "two convolutions, two linear layers; for a first try", 4),
        *(
            Builtin(
                f"resnet{depth}", partial(CifarResNet, blocks=n), (3, 32, 32), 10, "cifar10", f"CIFAR ResNet of {depth} layers"
            )
            for n, depth in ((3, 20), (5, 32), (7, 44), (9, 56))
        ),
        Builtin("resnet18", ResNet18, (3, 224, 224), 1000, None, "ImageNet ResNet, 18 layers, torchvision's names"),
    )
}


def model_named(name: str) -> Builtin:
    """The built-in of that name. Raises `UsageError`."""
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name]


def build(model: Builtin, *, shape: Shape | None = None, classes: int | None = None, seed: int = 0) -> nn.Module:
    """The model with random weights in evaluation mode; same `seed`, same weights, and the caller's random state is untouched.

    `shape` and `classes` adapt it to other data. Raises `DataError` for images that are too small.
    """
    shape, classes = shape or model.shape, model.classes if classes is None else classes
    if min(shape[1:]) < model.smallest:
        raise DataError(f"`{model.name}` takes images of {model.smallest}×{model.smallest} or more, not {shape[1]}×{shape[2]}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.factory(shape=shape, classes=classes).eval()
