"""Models of other libraries: stand-ins take their places here, so that neither has to be installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from exactq.errors import ModelError, UsageError
from exactq.sources import zoo
from exactq.sources.resolve import resolve


class Net(nn.Module):
    """As small as a classifier gets; `input_size` is where timm writes it."""

    def __init__(self, classes: int = 1000, size: int = 6) -> None:
        super().__init__()
        self.fc = nn.Linear(3, classes)
        self.size = size
        self.pretrained_cfg = {"input_size": (3, size, size)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] == self.size, f"Input ({x.shape[-1]}) is not the model's ({self.size})"
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """timm and torchvision with a model each; `asked` is what they were called with, `fails` what their downloads raise."""
    state: dict[str, Any] = {"asked": [], "fails": None}

    def make(name: str, **options: Any) -> Any:
        state["asked"].append((name, options, os.environ.get(zoo.SAFELY)))
        if (options.get("pretrained") or options.get("weights")) and state["fails"]:
            raise state["fails"]
        if name == "list":
            return []
        return Net(options.get("num_classes", 1000), 6 if name == "tiny" else 5).train()

    timm, torchvision, models = ModuleType("timm"), ModuleType("torchvision"), ModuleType("torchvision.models")
    timm.create_model, timm.list_models = make, lambda: ["tiny", "list"]
    models.get_model, models.list_models = make, lambda module: ["five", "bare"]

    def weights_of(name: str) -> Any:
        if name == "bare":
            raise ValueError("The WeightsEnum class couldn't be retrieved")
        return SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: SimpleNamespace(crop_size=[5])))

    models.get_model_weights = weights_of
    for module in (timm, torchvision, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return state


def test_a_librarys_model_comes_with_the_size_of_its_images(libraries: dict[str, Any]) -> None:
    net, shape = zoo.from_zoo("timm:tiny", seed=1)
    assert shape == (3, 6, 6)
    assert not net.training
    assert zoo.from_zoo("torchvision:five")[1] == (3, 5, 5)
    assert zoo.from_zoo("torchvision:bare")[1] == zoo.SHAPE
    assert [options for _, options, _ in libraries["asked"]] == [{"pretrained": False}, {"weights": None}, {"weights": None}]


def test_a_timm_name_may_say_which_weights(libraries: dict[str, Any]) -> None:
    zoo.from_zoo("timm:tiny.in1k", pretrained=True)
    assert libraries["asked"][0][:2] == ("tiny.in1k", {"pretrained": True})


def test_the_seed_decides_and_the_callers_random_state_is_untouched(libraries: dict[str, Any]) -> None:
    state = torch.random.get_rng_state()
    first, second, other = (zoo.from_zoo("timm:tiny", seed=seed)[0].state_dict()["fc.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("before", [None, "0"])
def test_checkpoints_are_read_by_the_restricted_reader(
    before: str | None, libraries: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(zoo.SAFELY, raising=False)
    if before is not None:
        monkeypatch.setenv(zoo.SAFELY, before)
    zoo.from_zoo("torchvision:five", pretrained=True)
    assert libraries["asked"] == [("five", {"weights": "DEFAULT"}, "1")]
    assert os.environ.get(zoo.SAFELY) == before


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("timm:tinny", UsageError, r"unknown model 'timm:tinny': did you mean 'timm:tiny'\? timm has 2, see its list_"),
        ("timm:", UsageError, "unknown model 'timm:': timm has 2"),
        ("torchvision:five.x", UsageError, "did you mean 'torchvision:five'"),
        ("timm:list", ModelError, "timm made a list of `timm:list`, not an nn.Module"),
        (
            "timm:tiny",
            ModelError,
            "trained weights of `timm:tiny` are neither in timm's cache nor to be downloaded: no way",
        ),
        (
            "torchvision:five",
            ModelError,
            "trained weights of .* torchvision's cache .* Give a file with --weights; .* --random-weights",
        ),
    ],
)
def test_what_cannot_be_had_is_told(spec: str, error: type[Exception], said: str, libraries: dict[str, Any]) -> None:
    libraries["fails"] = OSError("no way\nto the network")
    with pytest.raises(error, match=said):
        zoo.from_zoo(spec, pretrained="trained weights" in said)


@pytest.mark.parametrize("package", zoo.ZOOS)
def test_a_library_that_is_not_installed_is_told_with_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"`{package}:x` needs the package {package}: pip install {package}"):
        zoo.from_zoo(f"{package}:x")


def test_a_package_that_the_library_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "timm.py").write_text("import not_here_at_all.deeper")
    with pytest.raises(UsageError, match="needs the package not_here_at_all: pip install not_here_at_all"):
        zoo.from_zoo("timm:x")
    (tmp_path / "timm.py").write_text("raise OSError('a wrong library')")
    with pytest.raises(UsageError, match="needs the package timm, and importing it fails: a wrong library"):
        zoo.from_zoo("timm:x")


def test_torchvision_beside_a_torch_without_its_operators_is_imported_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defined: list[str] = []

    class Library:
        def __init__(self, name: str, kind: str) -> None:
            assert (name, kind) == ("torchvision", "FRAGMENT")

        def define(self, schema: str) -> None:
            defined.append(schema.partition("(")[0])

    monkeypatch.setattr(torch.library, "Library", Library)
    monkeypatch.setattr(zoo, "_KEPT", [])
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "from exactq.sources import zoo\n"
        "if not zoo._KEPT:\n    raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    (tmp_path / "torchvision" / "models.py").write_text("def list_models(module):\n    return ['five']\n")
    with pytest.raises(UsageError, match="torchvision has 1"):
        zoo.from_zoo("torchvision:x")
    assert defined == ["nms", "qnms"]
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        monkeypatch.delitem(sys.modules, name)


# Through resolve


def test_random_weights_come_with_noise_of_the_librarys_size(libraries: dict[str, Any]) -> None:
    source = resolve("timm:tiny", random_weights=True, seed=2, calibration=2)
    assert (source.label, source.trained, source.origin) == ("tiny", False, "random weights, seed 2")
    assert source.input_names == ("x",)
    assert source.example[0].shape == (2, 3, 6, 6)


def test_the_librarys_own_weights_are_trained_ones(libraries: dict[str, Any]) -> None:
    source = resolve("torchvision:five", data="noise:1,3,5,5", calibration=2)
    assert (source.trained, source.origin) == (True, "the trained weights of torchvision:five")


@pytest.mark.parametrize("classes", [7, 1000])
def test_weights_from_a_file_bring_their_number_of_classes(classes: int, libraries: dict[str, Any], tmp_path: Path) -> None:
    given = Net(classes)
    save_file(given.state_dict(), tmp_path / "w.safetensors")
    source = resolve("timm:tiny", weights=str(tmp_path / "w.safetensors"), data="noise:1,3,6,6", calibration=2)
    assert (source.trained, source.origin) == (True, "w.safetensors")
    assert torch.equal(source.module.state_dict()["fc.weight"], given.fc.weight)


def test_a_library_without_data_or_with_images_of_another_size_is_told(libraries: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"`timm:tiny` needs data: --data imagefolder:DIR, npz:FILE or file.py:factory"):
        resolve("timm:tiny")
    with pytest.raises(ModelError, match=r"`timm:tiny` does not take 1,3,9,9: Input \(9\) is not .*\. Its own is 1,3,6,6"):
        resolve("timm:tiny", random_weights=True, input_shape="1,3,9,9")
