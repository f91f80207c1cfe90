"""Weights out of files: what fits is loaded, what does not is told, and nothing in a file is ever run."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from exactq.errors import ModelError
from exactq.sources.weights import check_finite, fill, read


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 1)
        self.bn1 = nn.BatchNorm2d(3)


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: tensor.clone() for name, tensor in Net().state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("wrapped", [(), ("state_dict",), ("model",), ("model", "state_dict")])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_checkpoint_is_unwrapped(wrapped: tuple[str, ...], prefix: str, tmp_path: Path) -> None:
    content: Any = {prefix + name: tensor for name, tensor in tensors().items()}
    for name in wrapped:
        content = {name: content, "epoch": 3, "best": 0.5}
    torch.save(content, tmp_path / "w.pt")
    assert same(read(tmp_path / "w.pt"), tensors())


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "w.safetensors")
    assert same(read(tmp_path / "w.safetensors"), tensors())


def test_the_model_holds_what_the_file_held() -> None:
    net = Net()
    fill(net, tensors(), "w.pt")
    assert same(dict(net.state_dict()), tensors())


def test_counters_may_be_missing_and_halves_are_widened() -> None:
    net = Net()
    half = {name: tensor.half() for name, tensor in tensors().items() if not name.endswith("num_batches_tracked")}
    fill(net, half, "w.pt")
    assert net.conv1.weight.dtype == torch.float32
    assert torch.equal(net.conv1.weight, half["conv1.weight"].float())


def spoiled(value: float) -> Tensor:
    weight = torch.zeros(3, 2, 1, 1)
    weight[2, 1, 0, 0] = value
    return weight


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({k: v for k, v in tensors().items() if k != "conv1.bias"}, "w.pt does not fit the model: missing `conv1.bias`$"),
        ({"conv1.weight": torch.zeros(3, 2, 1, 1)}, "missing `conv1.bias`, `bn1.weight`, `bn1.bias` and 2 more$"),
        (tensors() | {"fc.weight": torch.zeros(1)}, "does not fit the model: unexpected `fc.weight`$"),
        (
            {k.replace("conv1.w", "conv.w"): v for k, v in tensors().items()},
            "missing `conv1.weight`; unexpected `conv.weight`; `conv.weight` may be `conv1.weight`",
        ),
        (tensors() | {"conv1.bias": torch.zeros(4)}, r"w.pt: `conv1.bias` has the shape \(4,\), the model's is \(3,\)"),
        (tensors() | {"conv1.bias": torch.zeros(3, dtype=torch.int8)}, "`conv1.bias` is int8, the model's is float32"),
        (
            tensors() | {"conv1.weight": spoiled(math.nan)},
            r"`conv1.weight` has a NaN \(channel 2, index \(2, 1, 0, 0\)\): a grid needs",
        ),
        (tensors() | {"conv1.weight": spoiled(-math.inf)}, r"`conv1.weight` has an infinity \(channel 2"),
        (tensors() | {"bn1.running_var": torch.tensor([1, 1e300, 1], dtype=torch.float64)}, r"has an infinity \(channel 1\)"),
    ],
)
def test_weights_that_do_not_fit_are_told_and_the_model_stays_as_it_was(content: dict[str, Tensor], said: str) -> None:
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ModelError, match=said):
        fill(net, content, "w.pt")
    assert same(before, dict(net.state_dict()))


def test_a_scalar_that_is_not_finite_has_no_channel() -> None:
    with pytest.raises(ModelError, match=r"^`s` has a NaN: a grid needs finite values$"):
        check_finite("s", torch.tensor(math.nan))


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.file,)


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["archive", "bare"])
def test_code_in_a_checkpoint_is_refused_and_not_run(protocol: int, kind: str, tmp_path: Path) -> None:
    path, ran = tmp_path / "w.pt", tmp_path / "ran"
    archive = kind == "archive"
    content = {"state_dict": tensors() if archive else {}, "extra": Evil(ran)}
    if archive:
        torch.save(content, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ModelError, match=r"w.pt carries code \(\w+.mkdir\): refused, nothing was run"):
        read(path)
    assert not ran.exists()
    with path.open("rb") as file:  # the test itself is sharp: unpickling would have run it
        torch.load(file, weights_only=False) if archive else pickle.load(file)
    assert ran.exists()


def test_a_whole_module_is_code(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"carries code \(torch.nn.modules.linear.Linear"):
        read(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": 3}, "w.pt: `a` is a int, not a tensor: save the state dict alone"),
        ({"state_dict": {"a": "x"}}, "`a` is a str, not a tensor"),
        ({3: torch.zeros(1)}, "the name 3 is a int: a state dict has strings for names"),
        ({"a": torch.zeros(2).to_sparse()}, "`a` is sparse, quantized or without values: save dense tensors"),
        ({"a": torch.zeros(2, device="meta")}, "`a` is sparse, quantized or without values"),
        ([torch.zeros(1)], r"holds a list: a state dict \(name -> tensor\) is needed"),
        (torch.zeros(1), "holds a Tensor"),
        ({}, "holds no tensor"),
    ],
)
def test_what_is_no_state_dict_is_told(content: object, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=said):
        read(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_file_is_told(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    torch.save(tensors(), path) if suffix == "pt" else save_file(tensors(), path)
    whole = path.read_bytes()
    for size in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=f"w.{suffix} cannot be read as .*, it is damaged or incomplete"):
            read(path)
    path.write_bytes(b"hello world\n")
    with pytest.raises(ModelError, match="damaged or incomplete"):
        read(path)
    path.unlink()
    with pytest.raises(ModelError, match=f"there is no weights file .*w.{suffix}"):
        read(path)


def test_a_pt2_file_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "w.pt2"
    torch.export.save(torch.export.export(nn.Linear(2, 3), (torch.zeros(1, 2),)), path)
    with pytest.raises(ModelError, match="can run code that it carries: refused, nothing was run; --trust allows"):
        read(path)
    assert read(path, trust=True)["weight"].shape == (3, 2)
    path.write_bytes(b"no archive")
    with pytest.raises(ModelError, match=r"cannot be loaded as .pt2"):
        read(path, trust=True)
