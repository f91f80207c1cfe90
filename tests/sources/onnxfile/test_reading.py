"""What is wrong with a file is told in one sentence, and nothing but the model's own folder is ever read."""

from __future__ import annotations

import random as dice
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from exactq.errors import ExactqError, ModelError
from exactq.sources import onnxfile
from exactq.sources.onnxfile.building import OPERATORS
from exactq.sources.onnxfile.reading import parse

from .files import file_of, node, proto, random

IMAGE = {"x": (1, 3, 8, 8)}


def net() -> onnx.ModelProto:
    """A little of everything."""
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1], name="first"),
        node("BatchNormalization", "c s s s v", "n"),
        node("Clip", "n lo hi", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", "p - f", "u", mode="nearest"),
        node("Concat", "u r", "j", axis=1),
        node("Pad", "j pads", "q"),
        node("Slice", "q at to ax", "l"),
        node("Transpose", "l", "t", perm=[0, 2, 3, 1]),
        node("ReduceMean", "t", "m", axes=[1, 2], keepdims=0),
        node("Shape", "m", "size"),
        node("Gather", "size zero", "count"),
        node("Concat", "count rest", "shape", axis=0),
        node("Reshape", "m shape", "flat"),
        node("Gemm", "flat g gb", "y", transB=1),
    ]
    constants = {
        "w": random(4, 3, 3, 3),
        "b": random(4),
        "s": random(4),
        "v": random(4, positive=True),
        "lo": np.float32(0),
        "hi": np.float32(6),
        "f": np.float32([1, 1, 2, 2]),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "at": np.array([1], np.int64),
        "to": np.array([9], np.int64),
        "ax": np.array([2], np.int64),
        "zero": np.array([0], np.int64),
        "rest": np.array([-1], np.int64),
        "g": random(5, 8),
        "gb": random(5),
    }
    return proto(nodes, IMAGE, constants)


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = net()
    change(model)
    return model


def test_a_file_is_read_as_it_is() -> None:
    file = file_of(net())
    assert (file.opset, file.outputs, len(file.nodes)) == (17, ("y",), 15)
    assert [(p.name, p.sizes, p.dtype) for p in file.inputs] == [("x", (1, 3, 8, 8), torch.float32)]
    assert file.nodes[0].place == "m.onnx: node 0 `first` (Conv)"
    assert file.nodes[0].get("pads", None) == [1, 1, 1, 1]
    assert torch.equal(file.constants["gb"], torch.from_numpy(random(5)))


def test_a_second_result_that_nobody_reads_is_no_obstacle() -> None:
    nodes = [node("Dropout", "x", "d mask"), node("MaxPool", "d", "y places", kernel_shape=[2, 2])]
    assert onnxfile.model(file_of(proto(nodes, IMAGE, outputs="y"))).graph.outputs == ("y",)
    nodes.append(node("Cast", "places", "z", to=1))
    with pytest.raises(ModelError, match=r"node 2 `z` \(Cast\) reads `places`, a second result that is not read from the file"):
        onnxfile.model(file_of(proto(nodes, IMAGE, outputs="y z")))


def test_a_container_newer_than_the_runtime_is_handed_on_as_an_older_one() -> None:
    assert onnx.ModelProto.FromString(file_of(changed(lambda m: m.__setattr__("ir_version", 13))).data).ir_version == 10


def test_a_size_that_has_a_name_is_free_and_an_initializer_among_the_inputs_is_no_input() -> None:
    model = proto([node("Add", "x c", "y")], {"x": ("N", 3, "h"), "c": (3, 1)}, {"c": random(3, 1)})
    assert [(p.name, p.sizes) for p in file_of(model).inputs] == [("x", (None, 3, None))]


REFUSED: list[tuple[Callable[[onnx.ModelProto], object], str]] = [
    (
        lambda m: m.graph.node[1].input.__setitem__(0, "gone"),
        r"node 1 `n` \(BatchNormalization\) reads `gone`, which is missing",
    ),
    (lambda m: m.graph.node[0].input.__setitem__(1, "w0"), r"node 0 `first` \(Conv\) reads `w0`, which is missing"),
    (
        lambda m: m.graph.node[1].input.__setitem__(0, "r"),
        "reads `r`, which is made later, so the nodes are not sorted or run in",
    ),
    (lambda m: m.graph.node[1].output.__setitem__(0, "c"), "makes `c`, which is there already"),
    (lambda m: m.graph.output[0].__setattr__("name", "z"), "m.onnx returns `z`, which no node makes"),
    (
        lambda m: m.graph.node[2].__setattr__("op_type", "Celu"),
        r"node 2 `r` \(Celu\): the operator Celu of opset 17 is not read. R",
    ),
    (lambda m: m.graph.node[2].__setattr__("domain", "com.acme"), "is of the domain 'com.acme': only ONNX's own operators"),
    (lambda m: m.graph.node[2].__setattr__("op_type", "If"), "is control flow, which no graph can hold"),
    (lambda m: m.graph.node[2].__setattr__("op_type", "QLinearConv"), "the file is quantized already; give the float file"),
    (lambda m: m.graph.node[9].__setattr__("op_type", "DequantizeLinear"), "node 9 `m` .*the file is quantized already"),
    (lambda m: m.opset_import[0].__setattr__("version", 8), "m.onnx is written in opset 8; opsets 9 to 23 are read"),
    (lambda m: m.opset_import[0].__setattr__("version", 99), "m.onnx is written in opset 99; opsets 9 to 23 are read"),
    (lambda m: m.opset_import.add(version=3), "m.onnx names 2 versions of ONNX's operators"),
    (lambda m: m.graph.ClearField("node"), "m.onnx holds no operator"),
    (
        lambda m: m.graph.initializer[0].dims.__setitem__(0, 5),
        "m.onnx is not valid: .*name: w. raw_data size .432 bytes. is too",
    ),
    (lambda m: m.graph.initializer[0].dims.__setitem__(0, -4), "m.onnx"),
    (lambda m: m.graph.initializer[0].__setattr__("data_type", TensorProto.FLOAT16), "`w` is of float16: read are float32"),
    (lambda m: m.graph.initializer[0].__setattr__("raw_data", b"\0\0\xc0\x7f" * 108), "`w` has a NaN"),
    (lambda m: m.graph.input[0].type.tensor_type.__setattr__("elem_type", TensorProto.STRING), "`x` is of string: read are"),
    (
        lambda m: m.graph.input[0].type.tensor_type.__setattr__("elem_type", TensorProto.INT64),
        r"node 0 `first` \(Conv\): its operands are of float32 a",
    ),
    (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "m.onnx"),
    (lambda m: m.graph.node[0].attribute.add(name="pad", type=2, i=1), "m.onnx is not valid: Unrecognized attribute: pad"),
    (lambda m: m.graph.node[3].attribute[0].ints.__setitem__(0, 99), r"node 3 `p` \(MaxPool\)"),
    (lambda m: m.graph.node[6].input.__setitem__(1, "w"), r"node 6 `q` \(Pad\): its pads is \[4, 3, 3, 3\] of torch.float32"),
    (lambda m: m.graph.node[6].input.__setitem__(1, "y"), "reads `y`, which is made later"),
    (lambda m: m.graph.node[7].input.__setitem__(1, "x"), r"node 7 `l` \(Slice\): its starts is computed by the model"),
    (
        lambda m: m.graph.output.add().CopyFrom(helper.make_tensor_value_info("size", TensorProto.INT64, [2])),
        "the output `size` is not comp",
    ),
    (lambda m: m.functions.add(name="Mine", domain="x"), r"defines operators of its own \(Mine\): inline them"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED)
def test_what_is_wrong_is_told_with_its_place(change: Callable[[onnx.ModelProto], object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        onnxfile.model(file_of(changed(change)))


def test_text_is_no_model(tmp_path: Path) -> None:
    for content in (b"", b"#!/bin/sh\n", b"\x80\x04\x95", net().SerializeToString()[:-100]):
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(ModelError, match=r"m.onnx (holds no operator|is no ONNX file, or a damaged one)"):
            onnxfile.read(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"there is no file .*n.onnx that can be read"):
        onnxfile.read(tmp_path / "n.onnx")
    with pytest.raises(ModelError, match="that can be read: Is a directory"):
        onnxfile.read(tmp_path)


# External data


def saved(folder: Path, location: str, **entries: str) -> Path:
    """A file whose `w` lies elsewhere."""
    model = net()
    weights = model.graph.initializer[0]
    (folder / "weights.bin").write_bytes(b"pad!" + weights.raw_data)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": location, "offset": "4", "length": "432"} | entries).items():
        weights.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_external_data_in_the_models_folder_is_read_and_becomes_part_of_it(tmp_path: Path) -> None:
    file = onnxfile.read(saved(tmp_path, "weights.bin"))
    assert torch.equal(file.constants["w"], torch.from_numpy(random(4, 3, 3, 3)))
    assert onnxfile.read(saved(tmp_path, "./weights.bin")).constants["w"].shape == (4, 3, 3, 3)
    assert b"weights.bin" not in file.data


def test_external_data_elsewhere_is_never_read(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.bin").write_bytes(bytes(1000))
    (inside / "link.bin").symlink_to(outside / "secret.bin")
    (inside / "linked").symlink_to(outside)
    elsewhere = (
        "../out/secret.bin",
        str(outside / "secret.bin"),
        "link.bin",
        "linked/secret.bin",
        "a/../../out/secret.bin",
        "",
    )
    for location in elsewhere:
        with pytest.raises(ModelError, match=r"`w` lies in .*outside of the model's folder: refused, nothing was read"):
            onnxfile.read(saved(inside, location))


@pytest.mark.parametrize(
    ("location", "entries", "said"),
    [
        ("none.bin", {}, "the file 'none.bin', which is not in the model's folder"),
        (".", {}, "the file '.', which is not in the model's folder"),
        ("weights.bin", {"offset": "five"}, "its place in 'weights.bin' is no number"),
        ("weights.bin", {"offset": "-1"}, "bytes -1 to 431 of 'weights.bin' are not there, it has 436"),
        ("weights.bin", {"offset": "5"}, "bytes 5 to 437 of 'weights.bin' are not there, it has 436"),
        ("weights.bin", {"length": "99999999999"}, "are not there, it has 436"),
        ("weights.bin", {"length": "400"}, "is not valid: .*name: w. raw_data size .400 bytes"),
    ],
)
def test_external_data_that_is_not_there_is_told(tmp_path: Path, location: str, entries: dict[str, str], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        onnxfile.read(saved(tmp_path, location, **entries))


# Damage


def mutated(data: bytes, seed: int) -> bytes:
    """The file with a few bits, bytes or stretches changed, or its end cut off."""
    chance, changed = dice.Random(seed), bytearray(data)
    if chance.random() < 0.1:
        return data[: chance.randrange(len(data))]
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        place = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0 | 1:
                changed[place] ^= 1 << chance.randrange(8)
            case 2:
                changed[place] = chance.randrange(256)
            case 3:
                changed[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    return bytes(changed)


def rewritten(model: onnx.ModelProto, seed: int) -> bytes:
    """The file with numbers and names changed where a message has them, so that it still parses."""
    chance = dice.Random(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    numbers = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, -(2**31), 2**62, -(2**63), 10**6)
    for _ in range(chance.choice((1, 1, 2, 3))):
        one = chance.choice(copy.graph.node)
        match chance.randrange(8):
            case 0:
                tensor = chance.choice(copy.graph.initializer)
                if tensor.dims:
                    tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(numbers)
            case 1:
                tensor = chance.choice([t for t in copy.graph.initializer if t.data_type == TensorProto.INT64])
                tensor.raw_data = np.array([chance.choice(numbers) for _ in range(len(tensor.raw_data) // 8)]).tobytes()
            case 2 | 3 if one.attribute:
                attribute = chance.choice(one.attribute)
                attribute.i = chance.choice(numbers)
                for index in range(len(attribute.ints)):
                    if chance.random() < 0.5:
                        attribute.ints[index] = chance.choice(numbers)
            case 4:
                one.op_type = chance.choice(sorted(OPERATORS))
            case 5 if one.input:
                every = [t.name for t in copy.graph.initializer] + [o for n in copy.graph.node for o in n.output] + ["x", ""]
                one.input[chance.randrange(len(one.input))] = chance.choice(every)
            case 6:
                copy.graph.initializer[chance.randrange(15)].data_type = chance.randrange(0, 25)
            case 7:
                copy.graph.input[0].type.tensor_type.shape.dim[chance.randrange(4)].dim_value = chance.choice(numbers)
    return copy.SerializeToString()


def attempt(data: bytes) -> bool:
    """Whether the bytes are read; whatever they are, nothing but an error of exactq comes out."""
    try:
        onnxfile.model(parse(data, "m.onnx", Path("nowhere"), OPERATORS))
    except ExactqError as error:
        said = str(error)
    else:
        return True
    assert said.startswith("m.onnx") or "needs finite values" in said
    return False


def test_damaged_files_are_read_or_refused() -> None:
    seed = net()
    data = seed.SerializeToString()
    read = [attempt(mutated(data, n)) for n in range(200)] + [attempt(rewritten(seed, n)) for n in range(200)]
    assert 0 < sum(read) < len(read)
