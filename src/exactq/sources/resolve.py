"""MODEL as one writes it -> a model ready to be captured, with data to calibrate and evaluate it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from exactq import pythonfile
from exactq.datasets.catalog import CALIBRATION, Shapes, load
from exactq.datasets.noise import noise_of, parse_shapes, written
from exactq.datasets.splits import BATCH_SIZE, Dataset, Indexed, Split
from exactq.errors import DataError, ExactqError, ModelError, UsageError, unknown
from exactq.models.catalog import MODELS, Builtin, Shape, build
from exactq.models.reference import Progress, image_shape, reference
from exactq.sources import onnxfile, zoo
from exactq.sources import weights as weight_files

OWN_DATA = "--data imagefolder:DIR, npz:FILE or file.py:factory"
ONNX = ".onnx"
CLASSES = 1000  # of ImageNet: what the libraries' classifiers have unless they are told
FILES = (ONNX, ".tflite", ".pt2", ".keras", ".h5", ".safetensors", ".pt", ".pth", ".th")


@dataclass(frozen=True, eq=False)
class Source:
    """A model in evaluation mode, `example` inputs of two samples, their names, its data, and where its weights are from.

    Where the model's batch is fixed, the example is one such batch. `label` names it in paths and reports; `trained` False
    means that its weights are random: no accuracy means anything.
    """

    label: str
    module: nn.Module
    example: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    dataset: Dataset
    trained: bool
    origin: str

    def __post_init__(self) -> None:
        if self.module.training:
            raise ModelError(f"`{self.label}` is in training mode: call eval()")
        if len(self.example) != len(self.input_names):
            raise ModelError(f"`{self.label}`: {len(self.example)} inputs have {len(self.input_names)} names")


def resolve(
    model: str,
    *,
    weights: str | None = None,
    data: str | None = None,
    input_shape: str | None = None,
    trust: bool = False,
    random_weights: bool = False,
    seed: int = 0,
    calibration: int = CALIBRATION,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> Source:
    """The source that `model` names: a built-in, `file.py:factory` that returns an `nn.Module`, a file, or a library's model.

    A built-in takes its weights from the file `weights`, or is trained on the data (in seconds, cached; `progress(step,
    steps, loss)` follows it), or keeps random ones. Without `data` that is: what the built-in was made for with `weights`,
    noise with `random_weights`, digits otherwise. A library's model (`timm:NAME`, `torchvision:NAME`) has the library's own
    weights where neither option is given. `input_shape` is written 1,3,32,32, batch first, inputs separated by `;`.
    Raises `UsageError`, `ModelError` or `DataError`.
    """
    if weights is not None and random_weights:
        raise UsageError("--weights and --random-weights exclude each other: give one")
    shapes = tuple(shape[1:] for shape in parse_shapes(input_shape)) if input_shape is not None else None
    loader = _Data(data, shapes, seed, calibration, batch_size)
    if pythonfile.is_named(model):
        return _from_file(model, loader, weights=weights, trust=trust, random_weights=random_weights)
    if model.endswith(ONNX) and Path(model).exists():
        return _from_onnx(Path(model), loader, weights=weights, random_weights=random_weights)
    if zoo.is_named(model):
        return _from_zoo(model, loader, weights=weights, trust=trust, random_weights=random_weights)
    if model in MODELS:
        builtin = MODELS[model]
        if weights is not None:
            return _with_weights(builtin, loader, Path(weights), trust=trust)
        if random_weights:
            return _with_random_weights(builtin, loader)
        dataset = loader.load(("x",), default="digits", shapes=(builtin.shape,))
        net = reference(builtin, dataset, seed=seed, progress=progress)
        return _source(builtin.name, net, dataset, ("x",), trained=True, origin=f"trained here on {dataset.name}, seed {seed}")
    raise _no_model(model)


def quantized_source(model: str, *, data: str | None = None, input_shape: str | None = None, seed: int = 0) -> Source:
    """The module of `file.py:factory` as it is, prepared or quantized by its own code, with data of its shapes.

    Its weights may be packed, so nothing is asked of them here. Raises `UsageError`, `ModelError` or `DataError`.
    """
    if not pythonfile.is_named(model):
        raise UsageError(f"'{model}' is no model that others prepared or quantized: name a function, file.py:factory")
    shapes = tuple(shape[1:] for shape in parse_shapes(input_shape)) if input_shape is not None else None
    loader = _Data(data, shapes, seed, CALIBRATION, BATCH_SIZE)
    net = _user_module(model, seed).eval()
    if data is None and shapes is None:
        raise UsageError(f"`{model}` needs its input shape: --input-shape 1,3,32,32 (inputs separated by ;), or --data")
    names = _parameters(net)
    dataset = loader.load(names, default=noise_of(shapes or ()))
    inputs = dataset.first.inputs
    known = names if names is not None and len(names) >= len(inputs) else tuple(f"input{n}" for n in range(len(inputs)))
    example = tuple(torch.cat([x, x])[:2] for x in inputs)
    return Source(model.rpartition(":")[2], net, example, known[: len(inputs)], dataset, True, model)


@dataclass(frozen=True)
class _Data:
    """What was asked for about data, before the model's inputs are known."""

    spec: str | None
    shapes: Shapes | None
    seed: int
    calibration: int
    batch_size: int

    def load(self, inputs: tuple[str, ...] | None, *, default: str, shapes: Shapes | None = None) -> Dataset:
        """The data asked for, or `default`; where it can be brought to a size, to that of `--input-shape`, else of `shapes`.

        Raises `DataError` where its shapes are not those of `--input-shape`.
        """
        spec = default if self.spec is None else self.spec
        if spec == "noise" and self.shapes is not None:
            spec = noise_of(self.shapes)
        dataset = load(
            spec,
            calibration=self.calibration,
            batch_size=self.batch_size,
            seed=self.seed,
            inputs=inputs,
            shapes=self.shapes or shapes,
        )
        if self.shapes is not None and dataset.shapes != self.shapes:
            raise DataError(f"--input-shape says {written(self.shapes)}, and `{dataset.name}` gives {written(dataset.shapes)}")
        return dataset


def _with_weights(builtin: Builtin, loader: _Data, path: Path, *, trust: bool) -> Source:
    """A built-in with the weights of a file; the number of its classes is that of the weights, not of the data."""
    if builtin.data is None and loader.spec is None:
        raise UsageError(f"`{builtin.name}` with weights needs data of its own kind: {OWN_DATA}")
    tensors = weight_files.read(path, trust=trust)
    dataset = loader.load(("x",), default=builtin.data or "", shapes=(builtin.shape,))
    classes = _classes(build(builtin), builtin.classes, tensors)
    net = build(builtin, shape=image_shape(builtin, dataset), classes=classes, weights=tensors)
    weight_files.fill(net, tensors, str(path))
    return _source(builtin.name, net, dataset, ("x",), trained=True, origin=path.name)


def _classes(net: nn.Module, classes: int, tensors: Mapping[str, Tensor]) -> int:
    """How many classes the weights have: the length of the model's last bias that has one entry for each of its `classes`."""
    biases = [name for name, tensor in net.state_dict().items() if name.endswith("bias") and tensor.shape == (classes,)]
    last = tensors.get(biases[-1]) if biases else None
    return last.shape[0] if last is not None and last.dim() == 1 else classes


def _with_random_weights(builtin: Builtin, loader: _Data) -> Source:
    """A built-in as it is initialised by the seed; the data only gives its shape and, where it has classes, their number."""
    dataset = loader.load(("x",), default=noise_of(loader.shapes or (builtin.shape,)), shapes=(builtin.shape,))
    shape: Shape = image_shape(builtin, dataset)
    net = build(builtin, shape=shape, classes=dataset.classes, seed=loader.seed)
    return _source(builtin.name, net, dataset, ("x",), trained=False, origin=f"random weights, seed {loader.seed}")


def _from_zoo(spec: str, loader: _Data, *, weights: str | None, trust: bool, random_weights: bool) -> Source:
    """A library's model with the weights of a file, with its own, or as the seed initialises it; data is never its own."""
    if loader.spec is None and not random_weights:
        raise UsageError(f"`{spec}` needs data: {OWN_DATA}; for speed and size alone --random-weights")
    origin = f"random weights, seed {loader.seed}"
    if weights is not None:
        tensors = weight_files.read(Path(weights), trust=trust)
        net, shape = zoo.from_zoo(spec, seed=loader.seed)
        wanted = _classes(net, CLASSES, tensors)
        if wanted != CLASSES:
            net, shape = zoo.from_zoo(spec, seed=loader.seed, classes=wanted)
        weight_files.fill(net, tensors, weights)
        origin = Path(weights).name
    else:
        net, shape = zoo.from_zoo(spec, pretrained=not random_weights, seed=loader.seed)
        origin = origin if random_weights else f"the trained weights of {spec}"
    names = _parameters(net)
    dataset = loader.load(names, default=noise_of(loader.shapes or (shape,)), shapes=(shape,))
    if random_weights and dataset.classes not in (None, CLASSES):
        net, _ = zoo.from_zoo(spec, seed=loader.seed, classes=dataset.classes)
    return _source(
        spec.partition(":")[2], net, dataset, names, trained=not random_weights, origin=origin, spec=spec, own=(shape,)
    )


def _from_file(spec: str, loader: _Data, *, weights: str | None, trust: bool, random_weights: bool) -> Source:
    """The module that a user's factory returns; whatever its weights are, they count as trained unless said otherwise."""
    net = _user_module(spec, loader.seed)
    if weights is not None:
        weight_files.fill(net, weight_files.read(Path(weights), trust=trust), weights)
    if loader.spec is None and not random_weights:
        raise UsageError(f"`{spec}` needs data: {OWN_DATA}; for speed and size alone --random-weights")
    if loader.spec is None and loader.shapes is None:
        raise UsageError(f"`{spec}` needs its input shape: --input-shape 1,3,32,32 (batch first, inputs separated by ;)")
    names = _parameters(net)
    dataset = loader.load(names, default=noise_of(loader.shapes or ()))
    origin = spec if weights is None else Path(weights).name
    label = spec.rpartition(":")[2]
    with pythonfile.told(spec, ModelError):
        return _source(label, net.eval(), dataset, names, trained=not random_weights, origin=origin, spec=spec)


def _user_module(spec: str, seed: int) -> nn.Module:
    """What the user's factory returns."""
    factory = pythonfile.function(spec, ModelError)
    with torch.random.fork_rng(devices=[]), pythonfile.told(spec, ModelError):
        torch.manual_seed(seed)
        net = factory()
    if not isinstance(net, nn.Module):
        raise ModelError(f"`{spec}` returned a {type(net).__name__}: the factory has to return an nn.Module")
    return net


def _from_onnx(path: Path, loader: _Data, *, weights: str | None, random_weights: bool) -> Source:
    """The graph of a float file; its weights are its own, and count as trained unless said otherwise."""
    if weights is not None:
        raise UsageError(f"{path} holds its own weights: leave --weights out")
    file = onnxfile.read(path)
    if loader.spec is None and not random_weights:
        raise UsageError(f"`{path}` needs data: {OWN_DATA}; for speed and size alone --random-weights")
    names, known = tuple(place.name for place in file.inputs), _known_shapes(file)
    if loader.spec is None and loader.shapes is None and known is None:
        raise UsageError(
            f"`{path}` leaves its inputs' sizes free: --input-shape 1,3,32,32 (batch first, inputs separated by ;)"
        )
    default = noise_of(loader.shapes or known or ())
    dataset = loader.load(names, default=default, shapes=known)
    net = onnxfile.model(file, dataset.shapes)
    inputs = net.graph.inputs
    if not all(i.batch for i in inputs):
        dataset = _in_batches_of(
            inputs[0].shape[0], replace(loader, batch_size=inputs[0].shape[0]).load(names, default=default)
        )
    sizes = [2 if i.batch else i.shape[0] for i in inputs]
    example = tuple(torch.cat([x] * size)[:size] for x, size in zip(dataset.first.inputs, sizes, strict=False))
    origin = f"{path.name}, opset {file.opset}" + (f", {net.note}" if net.note else "")
    return Source(path.stem, net, example, names[: len(example)], dataset, not random_weights, origin)


def _known_shapes(file: onnxfile.OnnxFile) -> Shapes | None:
    """The sizes of the file's inputs without the batch, or None where it leaves one free."""
    shapes = []
    for place in file.inputs:
        sizes = tuple(size for size in place.sizes[1:] if size is not None)
        if len(sizes) != len(place.sizes[1:]):
            return None
        shapes.append(sizes)
    return tuple(shapes)


def _in_batches_of(size: int, dataset: Dataset) -> Dataset:
    """The data without the last samples of a split, where they do not fill a batch that the model takes."""

    def whole(split: Split) -> Split:
        if not isinstance(split, Indexed) or split.samples % size == 0:
            return split
        if split.samples < size:
            raise DataError(f"`{dataset.name}` has {split.samples} samples in a split, the model takes {size} at a time")
        return split.first(split.samples // size * size)

    return replace(dataset, calibration=whole(dataset.calibration), evaluation=whole(dataset.evaluation))


def _source(
    label: str,
    net: nn.Module,
    dataset: Dataset,
    names: tuple[str, ...] | None,
    *,
    trained: bool,
    origin: str,
    spec: str = "",
    own: Shapes | None = None,
) -> Source:
    """The source, after its weights were found finite and its data was found to fit: two samples go through it.

    `spec` is the model as it was asked for, `own` the shapes that it is known to take.
    """
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            weight_files.check_finite(name, tensor)
    inputs = dataset.first.inputs
    example = tuple(torch.cat([x, x])[:2] for x in inputs)
    try:
        with torch.no_grad():
            net(*example)
    except (ExactqError, MemoryError):
        raise
    except (Exception, SystemExit) as e:  # the model's own code: whatever it raises
        kinds = ", ".join(dict.fromkeys(str(x.dtype).removeprefix("torch.") for x in example))
        where = f"{pythonfile.place(spec, e)}: " if pythonfile.is_named(spec) else ""
        said = (str(e).splitlines() or ["no message"])[0].rstrip(".")
        hint = f". Its own is {written(own)}" if own is not None else ""
        raise ModelError(
            f"`{spec or label}` does not take what `{dataset.name}` gives, {written(dataset.shapes)} ({kinds}, batch first): "
            f"{where}{type(e).__name__}: {said}{hint}"
        ) from e
    known = names if names is not None and len(names) >= len(inputs) else tuple(f"input{i}" for i in range(len(inputs)))
    return Source(label, net, example, known[: len(inputs)], dataset, trained, origin)


def _parameters(net: nn.Module) -> tuple[str, ...] | None:
    """The names of the inputs that `forward` takes by position, or None where it takes any number (`*args`)."""
    parameters = list(inspect.signature(net.forward).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _no_model(model: str) -> Exception:
    """The error for a MODEL that is none: a path that is not there, a kind of file that is not read, or a bad name."""
    path = Path(model)
    offered = [*MODELS, "file.py:factory", "file.onnx", *(f"{name}:NAME" for name in zoo.ZOOS)]
    if model and (path.suffix in FILES or path.exists() or len(path.parts) > 1):
        kind = path.suffix or ("a folder" if path.is_dir() else "no suffix")
        why = f"{model} ({kind}) is not taken as MODEL" if path.exists() else f"there is no file {model}"
        return ModelError(f"{why}. MODEL is one of {', '.join(offered)}; weights go to --weights")
    return unknown("model", model, offered)
