"""A built-in model trained here on small data, once: the next time it comes out of the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exactq import cache
from exactq.datasets.splits import Batch, Dataset, Indexed, Split
from exactq.errors import DataError
from exactq.graphs import store
from exactq.models.catalog import Builtin, Shape, build

VERSION = 2  # of this file's recipe: raise it when trained weights would change

Progress = Callable[[int, int, float], None]
"""Called as progress(step, steps, loss) after each step."""


@dataclass(frozen=True)
class Recipe:
    """AdamW with a linear rise and a cosine fall of the rate (one cycle), cross-entropy; no augmentation.

    The first `coarse` of the `steps` see the images at half their size, which is four times cheaper. `width` multiplies the
    model's channels.
    """

    steps: int = 200
    batch: int = 64
    rate: float = 4e-3
    decay: float = 1e-2
    coarse: int = 0
    width: float = 1.0


TINY = 16
"""Images of at most so many pixels a side are trained on with `RECIPES`, larger ones with `LARGER`."""
RECIPE = Recipe()
RECIPES = {"resnet18": Recipe(steps=100, batch=20, rate=1e-3), "mobilenetv2": Recipe(steps=130, rate=8e-3)}
"""What differs from `RECIPE`: eleven million weights, and fifty-two convolutions. Each takes about 15 s on one core."""
LARGER = {
    "simplecnn": Recipe(steps=2000),
    "resnet20": Recipe(steps=1600, coarse=1300),
    "resnet32": Recipe(steps=1000, coarse=800),
    "resnet44": Recipe(steps=750, coarse=600),
    "resnet56": Recipe(steps=600, coarse=500),
    "resnet18": Recipe(steps=1900, coarse=1500, width=0.25),
    "mobilenetv2": Recipe(steps=1900, rate=8e-3, coarse=1600, width=0.25),
}
"""For CIFAR-10: as much as one core does within three minutes; resnet20 and resnet18 reach 0.63, mobilenetv2 0.54."""


def recipe_for(model: Builtin, shape: Shape) -> Recipe:
    """How the model is trained on images of that shape."""
    return (RECIPES if max(shape[1:]) <= TINY else LARGER).get(model.name, RECIPE)


def reference(
    model: Builtin, dataset: Dataset, *, seed: int = 0, recipe: Recipe | None = None, progress: Progress | None = None
) -> nn.Module:
    """The model trained on the dataset, in evaluation mode, out of the cache or trained now and put there.

    Same seed, same data, same torch and instruction set: same weights, bit for bit. Training uses one thread, whatever the
    caller's number is: another number would round sums differently, and small models gain nothing by it. A cached file
    that does not read back is trained again. Raises `DataError` for data that cannot train an image classifier,
    `UsageError` where the cache folder cannot be written.
    """
    shape, classes = image_shape(model, dataset), _classes(model, dataset)
    recipe = recipe if recipe is not None else recipe_for(model, shape)
    net = build(model, shape=shape, classes=classes, seed=seed, width=recipe.width)
    key = cache.key(model.name, dataset.name, _fingerprint(dataset), seed, repr(recipe), VERSION)
    path = cache.folder() / f"{model.name}-{key}.safetensors"
    if not _read_into(net, path):
        train(net, dataset, seed=seed, recipe=recipe, progress=progress)
        _keep(net, path)
    return net


def image_shape(model: Builtin, dataset: Dataset) -> Shape:
    """The data's (channels, height, width). Raises `DataError` for data that is not one float image."""
    if len(dataset.shapes) != 1 or len(dataset.shapes[0]) != 3 or not dataset.first.inputs[0].is_floating_point():
        has = ", ".join(str(shape) for shape in dataset.shapes)
        raise DataError(f"`{model.name}` takes one float image (channels, height, width), `{dataset.name}` has inputs {has}")
    channels, height, width = dataset.shapes[0]
    return channels, height, width


def train(net: nn.Module, dataset: Dataset, *, seed: int, recipe: Recipe = RECIPE, progress: Progress | None = None) -> None:
    """Nothing; `net` is trained in place for `recipe.steps` steps and left in evaluation mode. Raises `DataError`."""
    split = dataset.train
    if split is None:
        raise DataError(f"`{dataset.name}` has no training data with labels: pass --weights, or other --data")
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.steps)
    _lay_out(net.train(), torch.channels_last)  # the faster layout, for the time of training alone
    with _one_thread(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step, batch in zip(range(1, recipe.steps + 1), _endless(split, recipe.batch, seed), strict=False):
            (images,) = batch.inputs
            scores = net(F.avg_pool2d(images, 2) if step <= recipe.coarse else images)
            loss = _loss(scores, batch.labels, dataset.name)
            state = [loss, *net.buffers()]  # infinite statistics can hide behind a finite loss
            if not all(bool(torch.isfinite(tensor).all()) for tensor in state):
                raise DataError(f"training on `{dataset.name}` diverged at step {step}: scale its inputs to about −1..1")
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step, recipe.steps, float(loss.detach()))
    _lay_out(net.eval(), torch.contiguous_format)


def _lay_out(net: nn.Module, layout: torch.memory_format) -> None:
    """Nothing; the kernels of convolutions have that layout."""
    for weight in net.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=layout)


def _loss(scores: Tensor, labels: Tensor | None, name: str) -> Tensor:
    """The cross-entropy of scores (n, classes) to whole labels (n,). Raises `DataError` for labels that are no classes."""
    if labels is None or labels.dim() != 1 or labels.dtype != torch.int64:
        raise DataError(f"`{name}` has no classes to train on: each sample needs one whole label")
    if int(labels.min()) < 0 or int(labels.max()) >= scores.shape[1]:
        raise DataError(f"`{name}` has labels {int(labels.min())}..{int(labels.max())}: 0..{scores.shape[1] - 1} are classes")
    return F.cross_entropy(scores, labels)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, torch computes with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _endless(split: Split, size: int, seed: int) -> Iterator[Batch]:
    """Batches without end, each epoch in an order of its own; a lone last sample is left out (batch norm needs two)."""
    epoch = 0
    while True:
        shuffled = split.shuffled(seed * 1_000_003 + epoch).sized(size) if isinstance(split, Indexed) else split
        usable = 0
        for batch in shuffled:
            if len(batch) > 1:
                usable += 1
                yield batch
        if usable == 0:
            raise DataError("training needs batches of two samples or more, and the data has none")
        epoch += 1


def _classes(model: Builtin, dataset: Dataset) -> int:
    if dataset.classes is None:
        raise DataError(f"`{dataset.name}` does not say how many classes it has: `{model.name}` cannot be trained on it")
    return dataset.classes


def _fingerprint(dataset: Dataset) -> str:
    """What stands for the data in the key: the number of training samples, and the bytes of the first calibration batch.

    Data edited elsewhere under an unchanged name would go unseen; the whole of CIFAR-10 takes longer to read than to train on.
    """
    samples = dataset.train.samples if isinstance(dataset.train, Indexed) else -1
    parts = {f"input {position}": x for position, x in enumerate(dataset.first.inputs)}
    parts |= {"labels": dataset.first.labels} if dataset.first.labels is not None else {}
    return f"{samples} {cache.digest(parts)}"


def _keep(net: nn.Module, path: Path) -> None:
    """Nothing; the weights are in the file `path`, with a digest that the format itself lacks."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    store.write(path, save(tensors, {"digest": cache.digest(tensors)}))


def _read_into(net: nn.Module, path: Path) -> bool:
    """Whether the weights in `path` are whole; `net` has them then."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
            digest = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return False
    wanted = {name: tensor.shape for name, tensor in net.state_dict().items()}
    if digest != cache.digest(tensors) or {name: tensor.shape for name, tensor in tensors.items()} != wanted:
        return False
    net.load_state_dict(tensors)
    return True
