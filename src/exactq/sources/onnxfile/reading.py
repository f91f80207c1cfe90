"""An `.onnx` file as plain records, checked: what is broken, quantized already, or beyond this importer is refused by name.

Nothing is executed and nothing is fetched. External data is read from regular files inside the model's own folder and from
nowhere else: neither `..` nor a link leads out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from exactq.errors import ModelError

OPSETS = range(9, 24)
"""The versions of ONNX's operators that are known."""

IR_VERSION = 10
"""The version of the container that is handed on: newer ones hold nothing that is read here, and runtimes lag behind."""

LARGEST = 2**31 - 1
"""Bytes of a model with all its tensors: no protobuf message is larger."""

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT16: torch.int16,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}

CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")


@dataclass(frozen=True)
class Place:
    """An input of the file: its name, its sizes (None where the file leaves one free), its kind of numbers."""

    name: str
    sizes: tuple[int | None, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Node:
    """One operator as it stands in the file: `place` says for a person where; an input or output that is left out is ''."""

    kind: str
    place: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def get(self, name: str, default: Any) -> Any:
        """An attribute, or what stands for it where it is not given."""
        return self.attributes.get(name, default)


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A float model: inputs, constants, nodes in order of computation, outputs; `data` is the whole file, tensors included."""

    path: str
    opset: int
    inputs: tuple[Place, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    data: bytes


def load(path: Path, operators: Collection[str]) -> OnnxFile:
    """The file at `path`, whose nodes are all of these operators; external tensors come from its folder.

    Raises `ModelError` with the file, the node and the reason.
    """
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= LARGEST else b""
    except OSError as error:
        raise ModelError(f"there is no file {path} that can be read: {error.strerror}") from error
    if size > LARGEST:
        raise ModelError(f"{path} has {size:,} bytes: up to {LARGEST:,} can be read")
    return parse(content, str(path), path.parent, operators)


def parse(content: bytes, path: str, folder: Path, operators: Collection[str]) -> OnnxFile:
    """The same for the bytes of a file that is called `path` and has its external tensors in `folder`."""
    try:
        proto = onnx.ModelProto.FromString(content)
        return _checked(proto, content, path, folder, operators)
    except ModelError:
        raise
    except Exception as error:  # protobuf and the checker fail in many ways: DecodeError, UnicodeDecodeError, ValueError …
        raise ModelError(f"{path} is no ONNX file, or a damaged one: {_first_line(error)}") from error


def _checked(proto: onnx.ModelProto, content: bytes, path: str, folder: Path, operators: Collection[str]) -> OnnxFile:
    graph = proto.graph
    if not graph.node:
        raise ModelError(f"{path} holds no operator: an empty file, or no ONNX model")
    places = [_place(path, index, node) for index, node in enumerate(graph.node)]
    opset = _opset(proto, path)
    for place, node in zip(places, graph.node, strict=True):
        _refuse_node(place, node, opset, operators)
    if proto.functions:
        raise ModelError(f"{path} defines operators of its own ({proto.functions[0].name}): inline them by onnx.inliner first")
    if graph.sparse_initializer:
        raise ModelError(f"{path} has the sparse tensor `{graph.sparse_initializer[0].values.name}`: store tensors dense")
    if _embed(proto, path, folder) or proto.ir_version > IR_VERSION:
        proto.ir_version = min(proto.ir_version, IR_VERSION)
        if proto.ByteSize() > LARGEST:
            raise ModelError(f"{path} and its external tensors have more than {LARGEST:,} bytes")
        content = proto.SerializeToString()
    _refuse_unsorted(graph, places, path)
    try:
        onnx.checker.check_model(content)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{path} is not valid: {_first_line(error)}") from error
    constants = {tensor.name: _tensor(tensor, f"{path}: `{tensor.name}`") for tensor in graph.initializer}
    inputs = tuple(_input(info, path) for info in graph.input if info.name not in constants)
    if not inputs:
        raise ModelError(f"{path} has no input: nothing to quantize")
    nodes = tuple(_node(place, node) for place, node in zip(places, graph.node, strict=True))
    return OnnxFile(path, opset, inputs, tuple(o.name for o in graph.output), nodes, constants, content)


def _place(path: str, index: int, node: onnx.NodeProto) -> str:
    name = node.name or next((o for o in node.output if o), "")
    return f"{path}: node {index} `{name}` ({node.op_type})"


def _opset(proto: onnx.ModelProto, path: str) -> int:
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) != 1:
        raise ModelError(f"{path} names {len(versions)} versions of ONNX's operators: one is needed")
    if versions[0] not in OPSETS:
        raise ModelError(
            f"{path} is written in opset {versions[0]}; opsets {OPSETS[0]} to {OPSETS[-1]} are read: "
            "export it again, or convert it by onnx.version_converter"
        )
    return int(versions[0])


def _refuse_node(place: str, node: onnx.NodeProto, opset: int, operators: Collection[str]) -> None:
    kind = node.op_type
    if kind.startswith(("QLinear", "QGemm", "QAttention")) or kind in (
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "ConvInteger",
        "MatMulInteger",
    ):
        raise ModelError(f"{place}: the file is quantized already; give the float file that it was made of")
    if node.domain not in ("", "ai.onnx"):
        raise ModelError(f"{place} is of the domain '{node.domain}': only ONNX's own operators are read")
    if kind in CONTROL_FLOW or any(a.HasField("g") or a.graphs for a in node.attribute):
        raise ModelError(f"{place} is control flow, which no graph can hold: export the model for fixed conditions")
    if kind not in operators:
        raise ModelError(f"{place}: the operator {kind} of opset {opset} is not read. Read are {', '.join(sorted(operators))}")


def _embed(proto: onnx.ModelProto, path: str, folder: Path) -> bool:
    """Whether there were external tensors; they are then part of `proto`."""
    found = False
    for tensor in _tensors(proto.graph):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            tensor.raw_data = _external(tensor, f"{path}: `{tensor.name}`", folder)
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
            found = True
    return found


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _external(tensor: TensorProto, what: str, folder: Path) -> bytes:
    """The bytes of an external tensor; raises `ModelError` for a place outside of `folder`, and for what is not there."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    inside, target = folder.resolve(), Path(folder, location).resolve()
    if not location or Path(location).is_absolute() or ".." in Path(location).parts or not target.is_relative_to(inside):
        raise ModelError(f"{what} lies in '{location}', outside of the model's folder: refused, nothing was read from there")
    if not target.is_file():
        raise ModelError(f"{what} lies in the file '{location}', which is not in the model's folder")
    try:
        offset, available = int(entries.get("offset", "0")), target.stat().st_size
        length = int(entries.get("length", str(available - offset)))
    except ValueError as error:
        raise ModelError(f"{what}: its place in '{location}' is no number ({error})") from error
    if offset < 0 or length < 0 or offset + length > available or length > LARGEST:
        raise ModelError(f"{what}: bytes {offset} to {offset + length} of '{location}' are not there, it has {available}")
    with target.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _refuse_unsorted(graph: onnx.GraphProto, places: list[str], path: str) -> None:
    """Raise where a value is read before it is made, made twice, or never made."""
    made = {o: place for place, node in zip(places, graph.node, strict=True) for o in node.output if o}
    known = {i.name for i in graph.input} | {t.name for t in graph.initializer} | {""}
    for place, node in zip(places, graph.node, strict=True):
        for name in node.input:
            if name not in known:
                why = (
                    "which is made later, so the nodes are not sorted or run in a circle"
                    if name in made
                    else "which is missing"
                )
                raise ModelError(f"{place} reads `{name}`, {why}")
        for name in node.output:
            if name and name in known:
                raise ModelError(f"{place} makes `{name}`, which is there already")
        known.update(node.output)
    if missing := [o.name for o in graph.output if o.name not in known or not o.name]:
        raise ModelError(f"{path} returns `{missing[0]}`, which no node makes")


def _tensor(tensor: TensorProto, what: str) -> Tensor:
    if tensor.data_type not in DTYPES:
        raise ModelError(f"{what} is of {_type_name(tensor.data_type)}: {_allowed()}")
    if any(size < 0 for size in tensor.dims):
        raise ModelError(f"{what} has the sizes {list(tensor.dims)}")
    try:
        value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(f"{what} cannot be read: {_first_line(error)}") from error
    return value.reshape(tuple(tensor.dims))


def _input(info: onnx.ValueInfoProto, path: str) -> Place:
    kind = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise ModelError(f"{path}: the input `{info.name}` is no tensor with a known number of dimensions")
    if kind.elem_type not in DTYPES:
        raise ModelError(f"{path}: the input `{info.name}` is of {_type_name(kind.elem_type)}: {_allowed()}")
    sizes = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim)
    return Place(info.name, sizes, DTYPES[kind.elem_type])


def _node(place: str, node: onnx.NodeProto) -> Node:
    attributes = {a.name: _attribute(a, f"{place}, {a.name}") for a in node.attribute}
    return Node(node.op_type, place, tuple(node.input), tuple(node.output), attributes)


def _attribute(attribute: AttributeProto, what: str) -> Any:
    if attribute.type == AttributeProto.TENSOR:
        return _tensor(attribute.t, what)
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return list(value) if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value


def _type_name(kind: int) -> str:
    return TensorProto.DataType.Name(kind).lower() if kind in TensorProto.DataType.values() else f"the unknown type {kind}"


def _allowed() -> str:
    return f"read are {', '.join(str(d).removeprefix('torch.') for d in DTYPES.values())}"


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
