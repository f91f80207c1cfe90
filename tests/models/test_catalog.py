"""The contract of every built-in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from exactq.errors import DataError, UsageError
from exactq.metrics import ACCURACY, measure
from exactq.models.catalog import MODELS, SMALL, Builtin, build, model_named
from exactq.models.mobilenetv2 import InvertedResidual
from exactq.sources.resolve import resolve

each = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@each
def test_it_is_a_plain_module_that_scores_each_image(model: Builtin) -> None:
    net = build(model)
    assert not net.training
    with torch.no_grad():
        scores = net(torch.zeros(1, *model.shape))
    assert scores.shape == (1, model.classes)
    assert bool(torch.isfinite(scores).all())


@each
@pytest.mark.parametrize("size", [8, 13])
def test_it_adapts_to_other_images_and_classes(model: Builtin, size: int) -> None:
    with torch.no_grad():
        assert build(model, shape=(2, size, size + 1), classes=3)(torch.zeros(2, 2, size, size + 1)).shape == (2, 3)


@each
def test_the_seed_decides_the_weights_and_the_callers_random_state_is_untouched(model: Builtin) -> None:
    state = torch.random.get_rng_state()
    first, second, other = (build(model, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85)]
)
def test_the_cifar_resnets_have_the_published_sizes(name: str, parameters: float) -> None:
    net = build(MODELS[name])
    layers = Counter(type(module) for module in net.modules())
    assert layers[nn.Conv2d] + layers[nn.Linear] == int(name.removeprefix("resnet"))
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == parameters  # He et al. 2015, table 6


def test_resnet18_has_torchvisions_names_and_size() -> None:
    net = build(MODELS["resnet18"])
    assert sum(p.numel() for p in net.parameters()) == 11_689_512
    names = set(net.state_dict())
    assert {"conv1.weight", "layer2.0.downsample.0.weight", "layer2.0.downsample.1.running_var", "fc.bias"} <= names
    assert len(names) == 122


def test_mobilenetv2_has_torchvisions_names_and_size() -> None:
    net = build(MODELS["mobilenetv2"])
    assert sum(p.numel() for p in net.parameters()) == 3_504_872
    layers = Counter(type(module) for module in net.modules())
    assert (layers[nn.Conv2d], layers[nn.ReLU6]) == (52, 35)
    assert sum(module.residual for module in net.modules() if isinstance(module, InvertedResidual)) == 10
    names = set(net.state_dict())
    assert {"features.0.0.weight", "features.1.conv.1.weight", "features.17.conv.2.weight", "features.18.1.bias"} <= names
    assert {"features.2.conv.0.1.running_mean", "features.2.conv.3.bias", "classifier.1.bias"} <= names
    assert len(names) == 314


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
def test_small_images_take_the_form_that_keeps_their_size(name: str) -> None:
    model = MODELS[name]
    strides = {
        side: sum(m.stride == (2, 2) for m in build(model, shape=(3, side, 8)).modules() if isinstance(m, nn.Conv2d))
        for side in (SMALL, SMALL + 1)
    }
    assert strides == {"resnet18": {64: 6, 65: 7}, "mobilenetv2": {64: 3, 65: 5}}[name]
    pools = [m for m in build(model, shape=(3, 64, 64)).modules() if isinstance(m, nn.MaxPool2d)]
    assert not pools


def test_a_width_multiplies_the_channels() -> None:
    whole, quarter = (build(MODELS["resnet18"], shape=(3, 32, 32), width=width) for width in (1, 0.25))
    for tensor, part in zip(whole.buffers(), quarter.buffers(), strict=True):
        assert tensor.dim() == 0 or part.numel() == tensor.numel() / 4
    half = build(MODELS["mobilenetv2"], width=0.5).state_dict()
    assert [half[f"features.{i}.conv.3.weight"].numel() for i in (2, 4, 7, 11, 14, 17)] == [16, 16, 32, 48, 80, 160]


def test_weights_choose_between_two_forms_where_only_one_has_their_shapes() -> None:
    model = MODELS["resnet18"]
    for own in ((3, 224, 224), (3, 32, 32)):
        net = build(model, shape=own, classes=5)
        for shape in ((3, 224, 224), (3, 32, 32)):
            other = build(model, shape=shape, classes=5, weights=net.state_dict())
            assert other.load_state_dict(net.state_dict())


def test_images_that_are_too_small_are_told() -> None:
    with pytest.raises(DataError, match="`simplecnn` takes images of 4×4 or more, not 3×8"):
        build(MODELS["simplecnn"], shape=(1, 3, 8))


def test_a_bad_name_is_answered() -> None:
    assert model_named("resnet20") is MODELS["resnet20"]
    with pytest.raises(UsageError, match="unknown model 'resnet21': did you mean 'resnet"):
        model_named("resnet21")


@pytest.mark.parametrize(
    ("name", "file", "least"), [("resnet20", "resnet20-12fca82f.th", 0.76), ("resnet56", "resnet56-4bfd9763.th", 0.76)]
)
def test_the_trained_weights_fit_and_recognise_real_images(name: str, file: str, least: float, data: Path) -> None:
    if not (data / "models" / file).is_file() or not (data / "cifar10").is_dir():
        pytest.skip(f"models/{file} or cifar10 is not in EXACTQ_DATA")
    source = resolve(name, weights=str(data / "models" / file), calibration=256)
    accuracy = measure(ACCURACY, lambda inputs: (source.module(*inputs),), source.dataset.evaluation.first(256))
    assert accuracy > least  # 0.81 of all: about two standard errors of 256 images below


@pytest.mark.slow
def test_resnet20_has_its_accuracy_on_all_test_images(data: Path) -> None:
    file = data / "models" / "resnet20-12fca82f.th"
    if not file.is_file() or not (data / "cifar10").is_dir():
        pytest.skip("models/resnet20-12fca82f.th or cifar10 is not in EXACTQ_DATA")
    source = resolve("resnet20", weights=str(file))
    accuracy = measure(ACCURACY, lambda inputs: (source.module(*inputs),), source.dataset.evaluation)
    assert accuracy == pytest.approx(0.8103, abs=5e-4)  # five images: float sums differ between machines
