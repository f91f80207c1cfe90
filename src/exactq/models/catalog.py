"""The models that are built in, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from exactq.errors import DataError, unknown
from exactq.models.cifar_resnet import CifarResNet
from exactq.models.mobilenetv2 import MobileNetV2
from exactq.models.resnet18 import ResNet18
from exactq.models.simplecnn import SimpleCNN

Shape = tuple[int, int, int]
"""(channels, height, width)"""
SMALL = 64
"""Images of at most so many pixels a side take a model's small form, where it has one."""


@dataclass(frozen=True)
class Builtin:
    """A classifier of images: `factory(shape=…, classes=…)`, and the shape, the classes and the data that it was made for.

    `data` is what weights from outside are measured on, None where it has to be named; `smallest` is the least height and
    width. `small` is the factory of another form, for images of at most `SMALL` pixels.
    """

    name: str
    factory: Callable[..., nn.Module]
    shape: Shape
    classes: int
    data: str | None
    description: str
    smallest: int = 1
    small: Callable[..., nn.Module] | None = None

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
        Builtin(
            "resnet18",
            ResNet18,
            (3, 224, 224),
            1000,
            None,
            "ImageNet ResNet, 18 layers, torchvision's names; up to 64×64 with the stem for CIFAR, trained here on images "
            "above 16×16 with a quarter of the channels",
            small=partial(ResNet18, small=True),
        ),
        Builtin(
            "mobilenetv2",
            MobileNetV2,
            (3, 224, 224),
            1000,
            None,
            "MobileNetV2, torchvision's names; up to 64×64 with two strides less, trained here on images above 16×16 with "
            "a quarter of the channels",
            small=partial(MobileNetV2, small=True),
        ),
    )
}


def model_named(name: str) -> Builtin:
    """The built-in of that name. Raises `UsageError`."""
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name]


def build(
    model: Builtin,
    *,
    shape: Shape | None = None,
    classes: int | None = None,
    seed: int = 0,
    width: float = 1.0,
    weights: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """The model with random weights in evaluation mode; same `seed`, same weights, and the caller's random state is untouched.

    `shape` and `classes` adapt it to other data; `width` multiplies the channels of a model that has two forms. The form is
    that of the image's size, or the other where only that has the shapes of `weights`, which are to be filled in afterwards.
    Raises `DataError` for images that are too small.
    """
    shape, classes = shape or model.shape, model.classes if classes is None else classes
    if min(shape[1:]) < model.smallest:
        raise DataError(f"`{model.name}` takes images of {model.smallest}×{model.smallest} or more, not {shape[1]}×{shape[2]}")
    options = {} if width == 1 else {"width": width}
    forms = [partial(form, shape=shape, classes=classes, **options) for form in _forms(model, shape)]
    fitting = [form for form in forms if weights is not None and _fits(form, weights)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (fitting or forms)[0]().eval()


def _forms(model: Builtin, shape: Shape) -> list[Callable[..., nn.Module]]:
    """The model's factories, that for the image's size first."""
    if model.small is None:
        return [model.factory]
    return [model.small, model.factory] if max(shape[1:]) <= SMALL else [model.factory, model.small]


def _fits(form: Callable[[], nn.Module], weights: Mapping[str, Tensor]) -> bool:
    """Whether all the weights that have a place in the form have its shape, too."""
    with torch.device("meta"):
        own = form().state_dict()
    return all(weights[name].shape == tensor.shape for name, tensor in own.items() if name in weights)
