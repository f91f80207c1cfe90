"""MODEL as one writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx import save as save_onnx
from safetensors.torch import save_file

from exactq.errors import DataError, ModelError, UsageError
from exactq.models.catalog import MODELS, build
from exactq.sources.resolve import resolve

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
    def forward(self, left, right=None):
        return self.fc(left) if right is None else self.fc(left) + right

def net():
    return Net().train()

class Any(nn.Module):
    def forward(self, *inputs):
        return inputs[0]

def number():
    return 3

def spoiled():
    net = Net()
    net.fc.weight.data[1, 2] = float("nan")
    return net

def fails():
    raise RuntimeError("no\\nluck")

def batches():
    return [(torch.ones(1, 3), torch.zeros(1))]
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NET)
    return str(tmp_path / "nets.py")


@pytest.fixture
def arrays(tmp_path: Path) -> str:
    np.savez(tmp_path / "a.npz", right=np.zeros((6, 2)), left=np.ones((6, 3)))
    return f"npz:{tmp_path / 'a.npz'}"


def test_a_built_in_is_trained_on_digits_and_is_ready() -> None:
    source = resolve("simplecnn")
    assert (source.label, source.trained, source.origin) == ("simplecnn", True, "trained here on digits, seed 0")
    assert source.input_names == ("x",)
    assert source.dataset.name == "digits"
    assert [tuple(x.shape) for x in source.example] == [(2, 1, 8, 8)]
    assert not source.module.training
    assert source.module(*source.example).shape == (2, 10)


@pytest.mark.parametrize("name", MODELS)
def test_random_weights_are_not_trained_and_come_with_noise_of_the_models_own_shape(name: str) -> None:
    source = resolve(name, random_weights=True, seed=3, calibration=2, batch_size=2)
    assert not source.trained
    assert source.origin == "random weights, seed 3"
    assert source.example[0].shape == (2, *MODELS[name].shape)
    assert source.dataset.first.labels is None
    expected = build(MODELS[name], seed=3).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in source.module.state_dict().items())


def test_random_weights_take_the_shape_of_data_or_the_one_given() -> None:
    assert resolve("resnet18", random_weights=True, data="digits").example[0].shape == (2, 1, 8, 8)
    source = resolve("resnet20", random_weights=True, input_shape="1,1,16,16")
    assert source.example[0].shape == (2, 1, 16, 16)
    assert source.dataset.name == "noise:1,1,16,16"


def test_weights_from_a_file_bring_their_number_of_classes(tmp_path: Path) -> None:
    net = build(MODELS["simplecnn"], classes=12, seed=5)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    source = resolve("simplecnn", weights=str(tmp_path / "w.safetensors"))
    assert (source.trained, source.origin) == (True, "w.safetensors")
    assert source.module(*source.example).shape == (2, 12)


def test_weights_of_the_form_for_large_images_make_that_form_of_small_images_too(tmp_path: Path) -> None:
    for shape, kernel in ((MODELS["resnet18"].shape, 7), ((3, 32, 32), 3)):
        net = build(MODELS["resnet18"], shape=shape, classes=3)
        save_file(net.state_dict(), tmp_path / "w.safetensors")
        source = resolve("resnet18", weights=str(tmp_path / "w.safetensors"), data="noise:1,3,40,40", calibration=2)
        assert source.module.get_parameter("conv1.weight").shape == (64, 3, kernel, kernel)
        assert source.module(*source.example).shape == (2, 3)


def test_weights_for_other_images_are_told(tmp_path: Path) -> None:
    save_file(build(MODELS["resnet20"]).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"`conv1.weight` has the shape \(16, 3, 3, 3\), the model's is \(16, 1, 3, 3\)"):
        resolve("resnet20", weights=str(tmp_path / "w.safetensors"), data="digits")


def test_a_users_factory_gives_the_model_and_its_inputs_their_names(file: str, arrays: str) -> None:
    source = resolve(f"{file}:net", data=arrays)
    assert (source.label, source.trained, source.input_names) == ("net", True, ("left", "right"))
    assert [tuple(x.shape) for x in source.example] == [(2, 3), (2, 2)]
    assert not source.module.training


def test_a_single_sample_is_doubled_and_optional_inputs_are_left_out(file: str) -> None:
    source = resolve(f"{file}:net", data=f"{file}:batches", input_shape="1,3")
    assert [tuple(x.shape) for x in source.example] == [(2, 3)]
    assert source.input_names == ("left",)


def test_inputs_without_names_are_numbered(file: str, arrays: str) -> None:
    assert resolve(f"{file}:Any", data="noise:1,2;1,3").input_names == ("input0", "input1")


def test_a_factory_is_given_the_seed(file: str) -> None:
    first, second, other = (resolve(f"{file}:net", input_shape="4,3", random_weights=True, seed=s) for s in (1, 1, 2))
    weights = [s.module.state_dict()["fc.weight"] for s in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not first.trained


def test_a_factorys_model_takes_weights_too(file: str, tmp_path: Path) -> None:
    save_file({"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    source = resolve(f"{file}:net", data="noise:1,3", weights=str(tmp_path / "w.safetensors"))
    assert source.origin == "w.safetensors"
    assert source.module(torch.ones(1, 3)).tolist() == [[3, 3]]


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        (":fails", {"data": "noise:1,3"}, ModelError, r"nets.py:fails` failed at .*nets.py:\d+: RuntimeError: no"),
        (":number", {"data": "noise:1,3"}, ModelError, "returned a int: the factory has to return an nn.Module"),
        (":spoiled", {"data": "noise:1,3"}, ModelError, r"`fc.weight` has a NaN \(channel 1, index \(1, 2\)\)"),
        (
            ":net",
            {"data": "noise:1,4"},
            ModelError,
            r"nets.py:net` does not take what `noise:1,4` gives, 1,4 \(float32, batch first\): .*:\d+: RuntimeError: mat1",
        ),
        (
            ":net",
            {"data": "noise:1,3;1,2;1,1"},
            ModelError,
            r"gives, 1,3;1,2;1,1 \(float32, batch first\): .*nets.py: TypeError: .*takes from 2 to 3 pos",
        ),
        (":net", {"data": "noise:1,3", "input_shape": "1,5"}, DataError, "--input-shape says 1,5, and `noise:1,3` gives 1,3"),
        (
            ":net",
            {},
            UsageError,
            "needs data: --data imagefolder:DIR, npz:FILE or file.py:factory; for speed and size alone --random",
        ),
        (":net", {"random_weights": True}, UsageError, "needs its input shape: --input-shape 1,3,32,32"),
        (":nett", {"data": "noise:1,3"}, UsageError, "unknown function in .*nets.py 'nett': did you mean 'net'"),
        ("", {"data": "noise:1,3"}, UsageError, "names no function: write .*nets.py:FUNCTION, it has Net, net"),
    ],
)
def test_what_is_wrong_with_a_users_model_is_told(
    file: str, name: str, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        resolve(file + name, **options)


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        (
            "simplecn",
            UsageError,
            r"unknown model 'simplecn': did you mean 'simplecnn'\? Known: file.onnx, file.py:factory, mobile.*, timm:NAME",
        ),
        ("none.py:net", ModelError, "there is no file none.py"),
        ("nets/none.onnx", ModelError, r"there is no file nets/none.onnx. MODEL is one of simplecnn, .*, file.py:factory"),
        ("hf:gpt2", UsageError, "unknown model 'hf:gpt2': .*Known: file.onnx, file.py:factory"),
        ("", UsageError, "unknown model ''"),
    ],
)
def test_a_model_that_is_none_is_told(model: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        resolve(model)


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"")
    with pytest.raises(ModelError, match=r"m.tflite \(.tflite\) is not taken as MODEL. MODEL is one of"):
        resolve(str(tmp_path / "m.tflite"))
    with pytest.raises(ModelError, match=r"\(a folder\) is not taken as MODEL"):
        resolve(str(tmp_path))


def onnx_file(path: Path, inputs: dict[str, list[Any]], *, axis: int = 1) -> str:
    """A file that adds its inputs and takes the softmax."""
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in inputs.items()]
    nodes = [helper.make_node("Add", [*inputs] * (2 // len(inputs)), ["s"])]
    nodes.append(helper.make_node("Softmax", ["s"], ["y"], axis=axis))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, next(iter(inputs.values())))]
    graph = helper.make_graph(nodes, "net", infos, outputs)
    save_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


def test_an_onnx_file_is_a_model_with_its_own_names_and_weights(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "net.onnx", {"left": [1, 3], "right": [1, 3]})
    np.savez(tmp_path / "a.npz", right=np.zeros((6, 3)), left=np.ones((6, 3)))
    source = resolve(file, data=f"npz:{tmp_path / 'a.npz'}")
    assert (source.label, source.origin, source.trained) == ("net", "net.onnx, opset 17", True)
    assert source.input_names == ("left", "right")
    assert [tuple(x.shape) for x in source.example] == [(2, 3), (2, 3)]
    assert source.module(*source.example).tolist() == [[pytest.approx(1 / 3)] * 3] * 2


def test_an_onnx_file_of_a_fixed_batch_gets_whole_batches_and_says_why(tmp_path: Path) -> None:
    source = resolve(onnx_file(tmp_path / "net.onnx", {"x": [4, 3]}, axis=0), data="noise:1,3", calibration=10)
    assert source.origin == "net.onnx, opset 17, only batches of 4: `y` (aten.softmax) works across the samples"
    assert [len(b) for b in source.dataset.calibration] == [4, 4]
    assert source.example[0].shape == (4, 3)


def test_an_onnx_file_takes_sizes_that_it_leaves_free_from_the_data(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "net.onnx", {"x": ["N", 3, "h", "w"]})
    assert resolve(file, data="noise:1,3,5,7").example[0].shape == (2, 3, 5, 7)
    assert resolve(file, input_shape="1,3,4,4", random_weights=True).trained is False
    fixed = onnx_file(tmp_path / "fixed.onnx", {"x": ["N", 3, 6, 6]})
    assert resolve(fixed, random_weights=True).dataset.name == "noise:1,3,6,6"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (
            {},
            UsageError,
            "net.onnx` needs data: --data imagefolder:DIR, npz:FILE or file.py:factory; for speed and size alone --r",
        ),
        ({"random_weights": True}, UsageError, "net.onnx` leaves its inputs' sizes free: --input-shape 1,3,32,32"),
        ({"weights": "w.pt", "data": "noise:1,3,4,4"}, UsageError, "net.onnx holds its own weights: leave --weights out"),
        ({"data": "noise:1,3"}, DataError, "the input `x` has 4 dimensions, the data 2"),
        ({"data": "noise:1,3,4,4;1,3"}, DataError, r"net.onnx takes 1 inputs \(x\), and 2 are given"),
    ],
)
def test_what_an_onnx_file_lacks_is_told(tmp_path: Path, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        resolve(onnx_file(tmp_path / "net.onnx", {"x": ["N", 3, "h", "w"]}), **options)


def test_options_that_exclude_each_other_or_lack_data_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--weights and --random-weights exclude each other"):
        resolve("simplecnn", weights="w.pt", random_weights=True)
    with pytest.raises(UsageError, match="`resnet18` with weights needs data of its own kind"):
        resolve("resnet18", weights="w.pt")
    with pytest.raises(ModelError, match="there is no weights file"):
        resolve("simplecnn", weights=str(tmp_path / "w.pt"))
    with pytest.raises(UsageError, match="is no input shape"):
        resolve("simplecnn", input_shape="8x8")
    with pytest.raises(DataError, match="--input-shape says 1,3,32,32, and `digits` gives 1,1,8,8"):
        resolve("simplecnn", input_shape="1,3,32,32")
