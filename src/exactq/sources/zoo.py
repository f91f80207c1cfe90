"""Models of other libraries by name: `timm:NAME` and `torchvision:NAME`, where the library is installed.

What is read of a library: the names it has, the model, the weights it would download, and the size of its images. Its
preprocessing stays with `--data`. Checkpoints are read as everywhere here: tensors alone, never code.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from exactq.errors import ModelError, UsageError

Shape = tuple[int, int, int]
SHAPE: Shape = (3, 224, 224)
NMS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""The operators that `import torchvision` looks for."""
SAFELY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_KEPT: list[torch.library.Library] = []
"""Definitions of operators live as long as the object that made them."""


@dataclass(frozen=True)
class Zoo:
    """A library of models: its `package`, the names it has, and model and image shape by name.

    `make(library, name, classes, pretrained)` takes None for the library's own number of classes.
    """

    package: str
    names: Callable[[ModuleType], Iterable[str]]
    make: Callable[[ModuleType, str, int | None, bool], nn.Module]
    shape: Callable[[ModuleType, str, nn.Module], Shape]


def is_named(spec: str) -> bool:
    """Whether `spec` names a model of another library.

    >>> is_named("timm:resnet50"), is_named("resnet18"), is_named("hf:gpt2")
    (True, False, False)
    """
    return spec.partition(":")[0] in ZOOS and ":" in spec


def from_zoo(spec: str, *, pretrained: bool = False, classes: int | None = None, seed: int = 0) -> tuple[nn.Module, Shape]:
    """The model in evaluation mode and the shape (channels, height, width) of the images it was made for.

    `pretrained` weights come out of the library's own cache or over the network; else `seed` decides them, and the caller's
    random state is untouched. Raises `UsageError` for a library that is not installed and a name that it does not have,
    `ModelError` for weights that are not to be had.
    """
    package, _, name = spec.partition(":")
    zoo = ZOOS[package]
    library = _imported(spec, zoo.package)
    _check_name(library, zoo, name)
    before = _downloaded()
    with torch.random.fork_rng(devices=[]), _restricted(), redirect_stdout(sys.stderr):  # libraries announce their downloads
        torch.manual_seed(seed)
        try:
            net = zoo.make(library, name, classes, pretrained)
        except Exception as e:  # a network, a hub, a cache or a constructor: whatever they raise
            why = (str(e).splitlines() or [""])[0].rstrip(".") or type(e).__name__
            if not pretrained:
                raise ModelError(f"{zoo.package} cannot make `{spec}`: {why}") from e
            if (file := _unreadable(e)) is not None:
                raise _damaged(spec, file, e, new=file in _downloaded() - before) from e
            raise ModelError(
                f"the trained weights of `{spec}` are neither in {zoo.package}'s cache nor to be downloaded: {why}. Give a "
                "file with --weights; for speed and size alone --random-weights"
            ) from e
    if not isinstance(net, nn.Module):
        raise ModelError(f"{zoo.package} made a {type(net).__name__} of `{spec}`, not an nn.Module")
    return net.eval(), zoo.shape(library, name, net)


READERS = {"load_state_dict_from_url": ("cached_file",), "load_state_dict_from_hf": ("cached_safe_file", "cached_file")}
"""The functions of torch.hub and timm that read a downloaded file -> what they call it, the one read first first."""


def _downloaded() -> frozenset[Path]:
    """The files in torch's cache of downloads."""
    folder = Path(torch.hub.get_dir(), "checkpoints")
    return frozenset(folder.iterdir()) if folder.is_dir() else frozenset()


def _unreadable(error: Exception) -> Path | None:
    """The downloaded file that was being read when `error` arose; None where it was something else.

    torch.hub takes a connection that ends too early for the end of the file, and checks a hash only where the library asks for
    it: such a file stays in its cache and fails each time. huggingface_hub compares sizes before a file gets its name.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for name in READERS.get(frame.f_code.co_name, ()):
            file = frame.f_locals.get(name)
            if isinstance(file, str) and Path(file).is_file():
                return Path(file)
    return None


def _damaged(spec: str, file: Path, error: Exception, *, new: bool) -> ModelError:
    """The error for a downloaded file that cannot be read; a `new` one is removed, so that the next run asks for it again."""
    # The first sentence: torch goes on with the dangerous advice to read the file as code.
    why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0].partition('. ')[0].rstrip('.')}"
    if not new:
        return ModelError(f"the trained weights of `{spec}` in {file.resolve()} cannot be read ({why}): delete that file")
    file.unlink(missing_ok=True)
    return ModelError(f"the trained weights of `{spec}` came damaged or incomplete ({why}) and are removed again: run it again")


def _imported(spec: str, package: str) -> ModuleType:
    """The library. Raises `UsageError` that says what to install."""
    try:
        try:
            return import_module(package)
        except RuntimeError as e:
            if "torchvision::nms" not in str(e):
                raise
            _define_nms()
            return import_module(package)
    except ImportError as e:
        missing = (e.name or package).partition(".")[0]
        raise UsageError(f"`{spec}` needs the package {missing}: pip install {missing}") from e
    except Exception as e:
        raise UsageError(f"`{spec}` needs the package {package}, and importing it fails: {e}") from e


def _define_nms() -> None:
    """Nothing; torchvision and what imports it can be imported again.

    torchvision 0.28's wheel for CUDA beside torch for the CPU: its library does not load, the operators are not defined, and
    the import ends with `operator torchvision::nms does not exist`. Classifiers use none of them.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in NMS:
        library.define(schema)
    _KEPT.append(library)
    for name in [name for name in sys.modules if re.match(r"(torchvision|timm)(\.|$)", name)]:
        del sys.modules[name]


def _check_name(library: ModuleType, zoo: Zoo, name: str) -> None:
    """Nothing, or a `UsageError` with the closest name: there are too many to list."""
    names = list(zoo.names(library))
    architecture = name.partition(".")[0] if zoo.package == "timm" else name  # timm: NAME.WEIGHTS
    if architecture not in names:
        close = get_close_matches(architecture, names, n=1)
        guess = f"did you mean '{zoo.package}:{close[0]}'? " if close else ""
        raise UsageError(
            f"unknown model '{zoo.package}:{name}': {guess}{zoo.package} has {len(names):,}, see its list_models()"
        )


@contextmanager
def _restricted() -> Iterator[None]:
    """Inside, torch reads checkpoints with its restricted reader, whatever a library asks for."""
    before = os.environ.get(SAFELY)
    os.environ[SAFELY] = "1"
    try:
        yield
    finally:
        del os.environ[SAFELY]
        if before is not None:
            os.environ[SAFELY] = before


def _make_timm(timm: ModuleType, name: str, classes: int | None, pretrained: bool) -> nn.Module:  # noqa: FBT001
    options = {} if classes is None else {"num_classes": classes}
    return timm.create_model(name, pretrained=pretrained, **options)


def _timm_shape(timm: ModuleType, name: str, net: nn.Module) -> Shape:
    settings = getattr(net, "pretrained_cfg", None) or {}
    return tuple(settings.get("input_size", SHAPE))


def _torchvision_names(torchvision: ModuleType) -> list[str]:
    models = import_module(f"{torchvision.__name__}.models")
    return models.list_models(module=models)  # the classifiers: those of segmentation and detection have modules of their own


def _make_torchvision(torchvision: ModuleType, name: str, classes: int | None, pretrained: bool) -> nn.Module:  # noqa: FBT001
    options = {} if classes is None else {"num_classes": classes}
    return import_module(f"{torchvision.__name__}.models").get_model(name, weights="DEFAULT" if pretrained else None, **options)


def _torchvision_shape(torchvision: ModuleType, name: str, net: nn.Module) -> Shape:
    models = import_module(f"{torchvision.__name__}.models")
    try:
        (side,) = set(models.get_model_weights(name).DEFAULT.transforms().crop_size)
    except (AttributeError, ValueError):  # a model without weights or of another kind of preprocessing
        return SHAPE
    return 3, int(side), int(side)


ZOOS = {
    zoo.package: zoo
    for zoo in (
        Zoo("timm", lambda timm: timm.list_models(), _make_timm, _timm_shape),
        Zoo("torchvision", _torchvision_names, _make_torchvision, _torchvision_shape),
    )
}
