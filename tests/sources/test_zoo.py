"""Models of other libraries: stand-ins take their places here, so that neither has to be installed."""

from __future__ import annotations

import io
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
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


class Server:
    """Says that it sends all of `body`, and closes the connection after half of it; `reset` tears it down."""

    def __init__(self, body: bytes, *, reset: int) -> None:
        self.body, self.reset = body, reset
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/w.pth"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with suppress(OSError):  # closed at the end of the test
            while True:
                client, _ = self.socket.accept()
                client.recv(65536)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.body))
                client.sendall(self.body[: len(self.body) // 2])
                if self.reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", self.reset, 0))
                client.close()


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "hub" / "checkpoints"


def downloading(url: str, **options: Any) -> Callable[..., Any]:
    """How a library makes its model with trained weights: through torch's own download."""

    def make(name: str, **_: Any) -> Any:
        return torch.hub.load_state_dict_from_url(url, weights_only=True, progress=False, **options)

    return make


@pytest.mark.parametrize(
    ("reset", "options", "said"),
    [
        (0, {}, r"came damaged or incomplete \(\w+: .*\) and are removed again: run it again$"),
        (0, {"check_hash": True, "file_name": "w-12345678.pth"}, "nor to be downloaded: invalid hash value"),
        (1, {}, "neither in timm's cache nor to be downloaded: .*Connection reset"),
    ],
    ids=["short", "hash", "reset"],
)
def test_a_download_that_breaks_off_leaves_nothing_that_the_next_run_would_trust(
    reset: int,
    options: dict[str, Any],
    said: str,
    libraries: dict[str, Any],
    checkpoints: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = io.BytesIO()
    torch.save({"weight": torch.randn(20_000)}, whole)
    server = Server(whole.getvalue(), reset=reset)
    monkeypatch.setattr(sys.modules["timm"], "create_model", downloading(server.url, **options))
    for _ in range(2):
        with pytest.raises(ModelError, match=said) as raised:
            zoo.from_zoo("timm:tiny", pretrained=True)
        assert "\n" not in str(raised.value)
        assert list(checkpoints.iterdir()) == []
    server.socket.close()
    assert capsys.readouterr().out == ""  # torch announces a download on stdout, where results go


def test_a_damaged_file_that_was_there_before_is_named_and_stays(
    libraries: dict[str, Any], checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.mkdir(parents=True)
    (checkpoints / "w.pth").write_bytes(b"half")
    monkeypatch.setattr(sys.modules["timm"], "create_model", downloading("http://127.0.0.1:9/w.pth"))
    with pytest.raises(ModelError, match=r"in .*w\.pth cannot be read \(\w+: .*\): delete that file$"):
        zoo.from_zoo("timm:tiny", pretrained=True)
    assert (checkpoints / "w.pth").read_bytes() == b"half"


def test_a_damaged_file_of_the_hubs_cache_is_named_and_stays(
    libraries: dict[str, Any], checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"half")

    def load_state_dict_from_hf(name: str, **_: Any) -> Any:  # as timm's
        cached_safe_file = str(file)
        return load_file(cached_safe_file)

    monkeypatch.setattr(sys.modules["timm"], "create_model", load_state_dict_from_hf)
    with pytest.raises(ModelError, match=r"in .*model\.safetensors cannot be read \(Safe\w+: .*\): delete that file$"):
        zoo.from_zoo("timm:tiny", pretrained=True)
    assert file.exists()


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


def test_random_weights_have_as_many_classes_as_the_data(libraries: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.random.default_rng(0).normal(size=(8, 3, 6, 6)), labels=np.arange(8) % 4)
    source = resolve("timm:tiny", random_weights=True, data=f"npz:{tmp_path / 'a.npz'}")
    assert source.module(*source.example).shape == (2, 4)


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
    said = r"does not take what .* gives, 1,3,9,9 \(float32, batch first\): .*: Input \(9\) is not .*\. Its own is 1,3,6,6"
    with pytest.raises(ModelError, match=said):
        resolve("timm:tiny", random_weights=True, input_shape="1,3,9,9")
