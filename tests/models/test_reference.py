"""References trained here: good enough, the same again, and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from exactq import cache
from exactq.datasets.catalog import load
from exactq.datasets.splits import Batch, Dataset, Streamed, in_memory
from exactq.errors import DataError
from exactq.metrics import ACCURACY, measure
from exactq.models.catalog import MODELS, build
from exactq.models.reference import Recipe, recipe_for, reference, train

SHORT = Recipe(steps=3)
CNN = MODELS["simplecnn"]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXACTQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def digits() -> Dataset:
    return load("digits")


def weights(net: nn.Module) -> list[Tensor]:
    return list(net.state_dict().values())


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


@pytest.mark.parametrize(
    "name", ["simplecnn", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet20", "resnet18", "mobilenetv2"))]
)
def test_it_recognises_digits(name: str, digits: Dataset) -> None:
    net = reference(MODELS[name], digits)
    assert not net.training
    least = {"simplecnn": 0.97, "resnet18": 0.95}.get(name, 0.93)
    assert measure(ACCURACY, lambda inputs: (net(*inputs),), digits.evaluation) > least


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_it_recognises_photographs(name: str, data: Path) -> None:
    if not (data / "cifar10").is_dir():
        pytest.skip("cifar10 is not in EXACTQ_DATA")
    photographs = load("cifar10")
    net = reference(MODELS[name], photographs)
    assert measure(ACCURACY, lambda inputs: (net(*inputs),), photographs.evaluation) > 0.6


def test_small_images_are_trained_on_otherwise_than_large_ones_and_fit_the_cache(kept: Path) -> None:
    assert recipe_for(MODELS["resnet18"], (1, 8, 8)).width == 1
    wide, narrow = recipe_for(MODELS["resnet18"], (3, 16, 16)), recipe_for(MODELS["resnet18"], (3, 32, 32))
    assert (wide.width, narrow.width, narrow.coarse) == (1, 0.25, 1500)
    split = in_memory((torch.rand(8, 3, 20, 20),), torch.arange(8) % 2)
    photographs = Dataset("mine", split, split, split, classes=2)
    short = Recipe(steps=2, coarse=1, width=0.25)
    net = reference(MODELS["resnet18"], photographs, recipe=short)
    assert net.get_parameter("fc.weight").shape == (2, 128)
    assert all(weight.is_contiguous() for weight in net.parameters())
    assert equal(net, reference(MODELS["resnet18"], photographs, recipe=short))
    assert len(list(kept.iterdir())) == 1


def test_the_first_steps_see_images_of_half_the_size(kept: Path, digits: Dataset) -> None:
    sizes: list[int] = []
    net = build(MODELS["resnet20"], shape=(1, 8, 8))
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[-1]))
    train(net, digits, seed=0, recipe=Recipe(steps=4, batch=8, coarse=3))
    assert sizes == [4, 4, 4, 8]


def test_the_same_seed_gives_the_same_weights_whatever_the_number_of_threads(digits: Dataset) -> None:
    nets = []
    before, state = torch.get_num_threads(), torch.random.get_rng_state()
    for threads, seed in ((1, 0), (2, 0), (1, 1)):
        torch.set_num_threads(threads)
        net = build(CNN, seed=seed)
        train(net, digits, seed=seed, recipe=Recipe(steps=30))
        assert torch.get_num_threads() == threads
        nets.append(net)
    torch.set_num_threads(before)
    assert equal(nets[0], nets[1])
    assert not equal(nets[0], nets[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_it_is_trained_once_and_then_comes_out_of_the_cache(kept: Path, digits: Dataset) -> None:
    steps: list[tuple[int, int]] = []

    def progress(step: int, of: int, loss: float) -> None:
        assert loss > 0
        steps.append((step, of))

    first = reference(CNN, digits, recipe=SHORT, progress=progress)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert equal(first, reference(CNN, digits, recipe=SHORT, progress=progress))
    assert len(steps) == 3
    (file,) = kept.iterdir()
    assert file.name.startswith("simplecnn-")
    assert file.suffix == ".safetensors"


def test_model_data_seed_and_recipe_are_kept_apart(kept: Path, digits: Dataset) -> None:
    reference(CNN, digits, recipe=SHORT)
    reference(CNN, digits, seed=1, recipe=SHORT)
    reference(CNN, digits, recipe=Recipe(steps=2))
    split = in_memory((torch.rand(8, 1, 8, 8),), torch.arange(8) % 3)
    reference(CNN, Dataset("digits", split, split, split, classes=3), recipe=SHORT)
    assert len(list(kept.iterdir())) == 4


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "another"])
def test_a_damaged_file_is_trained_again(damage: str, kept: Path, digits: Dataset) -> None:
    whole = reference(CNN, digits, recipe=SHORT)
    (file,) = kept.iterdir()
    data = file.read_bytes()
    bad = {
        "truncated": data[: len(data) // 2],
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "empty": b"",
        "another": b"not safetensors at all",
    }
    file.write_bytes(bad[damage])
    assert equal(reference(CNN, digits, recipe=SHORT), whole)
    assert cache.folder() == kept
    assert len(file.read_bytes()) == len(data)


def test_streamed_data_trains_too_and_a_lone_sample_is_left_out(kept: Path) -> None:
    whole = Batch((torch.rand(4, 1, 8, 8),), torch.tensor([0, 1, 0, 1]))
    split = Streamed(lambda: iter([whole, whole.first(1)]))
    reference(CNN, Dataset("mine", split, split, split, classes=2), recipe=SHORT)
    lone = Streamed(lambda: iter([whole.first(1)]))
    with pytest.raises(DataError, match="batches of two samples or more"):
        reference(CNN, Dataset("lone", lone, lone, lone, classes=2), recipe=SHORT)


IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("inputs", "labels", "classes", "said"),
    [
        ((torch.rand(4, 8),), LABELS, 2, r"takes one float image \(channels, height, width\), `mine` has inputs \(8,\)"),
        ((IMAGES, IMAGES), LABELS, 2, "takes one float image"),
        ((IMAGES.long(),), LABELS, 2, "takes one float image"),
        ((IMAGES,), LABELS, None, "`mine` does not say how many classes it has"),
        ((IMAGES,), LABELS.float(), 2, "`mine` has no classes to train on: each sample needs one whole label"),
        ((IMAGES,), LABELS * 2, 2, r"`mine` has labels 0..2: 0..1 are classes"),
        ((IMAGES * 1e30,), LABELS, 2, "training on `mine` diverged at step 1: scale its inputs"),
    ],
)
def test_data_that_cannot_train_it_is_told(
    inputs: tuple[Tensor, ...], labels: Tensor, classes: int | None, said: str, kept: Path
) -> None:
    split = in_memory(inputs, labels)
    with pytest.raises(DataError, match=said):
        reference(CNN, Dataset("mine", split, split, split, classes=classes), recipe=SHORT)
    assert not kept.exists() or not list(kept.iterdir())


def test_without_training_data_weights_are_asked_for(kept: Path) -> None:
    split = in_memory((IMAGES,), LABELS)
    with pytest.raises(DataError, match="`mine` has no training data with labels: pass --weights"):
        reference(CNN, Dataset("mine", split, split, classes=2), recipe=SHORT)
