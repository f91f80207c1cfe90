"""A graph -> an ONNX file in ONNX Runtime's dialect: folded integer weights, int32 bias, uint8 activations, QDQ around kernels.

Names are the model's: the tensor `layer1.0.relu/codes` holds the codes of the value `layer1.0.relu`, a node is called what it
makes. Movement runs on the codes themselves. Files hold no paths, no dates and no stack traces, and the same graph gives the
same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx

from exactq import __version__
from exactq.errors import TargetError
from exactq.graphs.graph import Graph, arguments, constant, op_name
from exactq.graphs.programs import example_inputs, fake_values, is_compute, program
from exactq.graphs.qdq import CODES, REAL, QuantizeNode, read_dequantize, read_quantize
from exactq.numerics.requantization import stored
from exactq.targets.onnxruntime.operators import MOVES, OPERATORS, OPSET, ROWS, Decoded, Sheet
from exactq.targets.onnxruntime.translate import translate
from exactq.traces import walk

IR_VERSION = 10
STORED = "stored"
"""What a file calls codes before they are bounded to a format narrower than its storage."""

_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
}


def emit(graph: Graph) -> onnx.ModelProto:
    """The checked ONNX model of a float graph or a Q/DQ graph, with a free batch dimension where the graph has one.

    Raises `TargetError` naming the value and the operator that ONNX cannot express.
    """
    writer = _Writer(graph)
    for node in graph:
        writer.write(node)
    model = writer.model()
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise TargetError(f"the graph has no valid ONNX file: {str(error).strip().splitlines()[0]}") from error
    return model


def serialized(model: onnx.ModelProto) -> bytes:
    """The file's bytes, the same for the same model."""
    return model.SerializeToString(deterministic=True)


class _Writer:
    """Walks the graph once; holds the sheet and the ONNX name of each value."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.free = any(i.batch for i in graph.inputs)
        self.fakes = fake_values(graph, batch=2)
        self.sheet = Sheet(self._sizes())
        self.names: dict[fx.Node, str] = {}
        self.parts: dict[fx.Node, tuple[str, ...]] = {}
        self.outputs = graph.outputs

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        """Value name -> its sizes, −1 where the batch size shows."""
        other = fake_values(self.graph, batch=3) if self.free else self.fakes
        return {
            name: tuple(a if a == b else -1 for a, b in zip(value.shape, other[name].shape, strict=True))
            for name, value in self.fakes.items()
        }

    def write(self, node: fx.Node) -> None:
        name = self.graph.name(node)
        if node.op == "placeholder":
            self._know(node, name)
        elif node.op == "get_attr":
            self.names[node] = name  # written where it is read: weights as codes, the rest as it is
        elif (q := read_quantize(self.graph, node)) is not None:
            self._quantize(node, q)
        elif (dq := read_dequantize(self.graph, node)) is not None:
            self._dequantize(node, dq)
        elif op_name(node) == "getitem":
            whole, index = node.args
            self._know(node, self.parts[whole][index])  # type: ignore[index]
        elif not self._on_codes(node):
            self._call(node, self._result_name(node))

    def _know(self, node: fx.Node, name: str) -> None:
        self.names[node] = name
        self.sheet.sizes.setdefault(name, self.sheet.sizes.get(self.graph.name(node), ()))

    def _result_name(self, node: fx.Node) -> str:
        """The plain value name; where the model's output is its decoded codes, the output keeps that name."""
        name = self.graph.name(node)
        if name.endswith(REAL) and name in self.outputs:
            return name.removesuffix(REAL)
        return f"{name}/float" if f"{name}{REAL}" in self.outputs else name

    def _operand(self, node: fx.Node) -> str:
        if node.op == "get_attr":
            name = self.sheet.constant(self.graph.name(node), constant(self.graph.module, node).numpy())
        else:
            name = self.names[node]
        self.sheet.sizes.setdefault(name, self.sheet.sizes.get(self.graph.name(node), ()))
        return name

    def _call(self, node: fx.Node, output: str) -> None:
        operands: list[fx.Node] = []
        fx.node.map_arg((node.args, node.kwargs), operands.append)  # a value that is read twice is two operands
        if self.graph.name(node) not in self.fakes:
            self._several(node, output)
            return
        self._know(node, output)
        # A matrix product of more than two dimensions is made as rows; what bounds it next is written on the rows.
        inputs = [self._operand(n) for n in operands]
        if op_name(node) not in ROWS:
            inputs = [self.sheet.shaped(name) for name in inputs]
        if self._tempting(node):
            inputs[0] = self._kept_real(inputs[0], output)
        reals = all(self.fakes[self.graph.name(n)].dtype == torch.float32 for n in (node, *operands))
        if not (reals and self._by_table(node, inputs, output)):
            reads = {n: self.sheet.shaped(name) for n, name in zip(operands, inputs, strict=True)}
            translate(self.graph, node, self.sheet, reads, [output], self._samples(node))

    def _tempting(self, node: fx.Node) -> bool:
        """Whether a layer with real weights reads decoded codes: ONNX Runtime would quantize its weights by itself."""
        if not is_compute(node):
            return False
        x, weight = node.args[:2]
        return weight.op == "get_attr" and read_dequantize(self.graph, x) is not None  # type: ignore[union-attr,arg-type]

    def _kept_real(self, name: str, output: str) -> str:
        """The same reals behind a Max of one operand, through which `weight_bias_quantization.cc` does not look.

        Between DequantizeLinear and QuantizeLinear that pass gives a float layer int8 weights, silently (measured, ORT 1.31).
        """
        kept = self.sheet.add("Max", [name], f"{output}/reals")
        self.sheet.sizes[kept] = self.sheet.sizes[name]
        return kept

    def _by_table(self, node: fx.Node, inputs: Sequence[str], output: str, **options: Any) -> bool:
        """Write a call that the table of operators knows; otherwise nothing is written, and False the answer."""
        emit_op = OPERATORS.get(op_name(node))
        if emit_op is None:
            return False
        written, constants = len(self.sheet.nodes), dict(self.sheet.constants)
        try:
            emit_op(self.sheet, node, inputs, output, **options)
        except NotImplementedError:
            del self.sheet.nodes[written:]
            self.sheet.constants = constants
            return False
        return True

    def _several(self, node: fx.Node, output: str) -> None:
        """A call with several results, each read through `getitem`."""
        users = [u for u in node.users if op_name(u) == "getitem"]
        if len(users) != len(node.users):
            name, operator = self.graph.name(node), op_name(node)
            raise TargetError(f"`{name}`: ONNX cannot express `{operator}`, whose result is no tensor and is read as a whole")
        results = self._value(node)
        names = [f"{output}/{index}" for index in range(len(results))]
        by_index = {u.args[1]: self._result_name(u) for u in users}
        names = [by_index.get(index, name) for index, name in enumerate(names)]
        reads = {n: self.sheet.shaped(self._operand(n)) for n in node.all_input_nodes}
        translate(self.graph, node, self.sheet, reads, names, self._samples(node))
        self.parts[node] = tuple(names)

    def _quantize(self, node: fx.Node, q: QuantizeNode) -> None:
        """Codes: of a constant folded, of a moved value moved, of any other by QuantizeLinear."""
        name, source = self.graph.name(node), q.source
        if source.op == "get_attr":
            codes = q.grid.encode(constant(self.graph.module, source))
            self.names[node] = self.sheet.constant(name, codes.numpy())
            return
        self._know(node, name)
        if self._moved_on_codes(source, node):
            behind = source.all_input_nodes[0]
            dq = read_dequantize(self.graph, behind)
            assert dq is not None
            codes_in = self.names[dq.source]
            options = {}
            if op_name(source) == "aten.constant_pad_nd":
                value = torch.tensor(float(arguments(source)["value"]))
                options = {"fill": q.grid.encode(value).numpy()}
            if not self._by_table(source, [codes_in], name, **options):
                translate(self.graph, source, self.sheet, {behind: codes_in}, [name], [self._value(dq.source)])
            return
        base = name.removesuffix(CODES)
        scale = self.sheet.constant(f"{base}/scale", q.grid.scale.numpy())
        zero = self.sheet.constant(f"{base}/zero", q.grid.zero.to(q.grid.format.dtype).numpy())
        fmt = q.grid.format
        made = name if stored(q.grid).format == fmt else f"{name}/{STORED}"
        self.sheet.sizes[made] = self.sheet.sizes[name]
        self.sheet.as_rows("QuantizeLinear", [self.names[source], scale, zero], made)
        self.sheet.shaped(made)
        if made != name:  # QuantizeLinear saturates where uint8 ends, and no earlier
            bounds = [self.sheet.constant(f"{base}/{end}", np.uint8(n)) for end, n in (("lo", fmt.lo), ("hi", fmt.hi))]
            self.sheet.add("Clip", [made, *bounds], name)

    def _dequantize(self, node: fx.Node, dq: QuantizeNode) -> None:
        codes = self.names[dq.source]
        if dq.source.op == "get_attr":
            codes = self.sheet.constant(codes, constant(self.graph.module, dq.source).numpy())
        output = self._result_name(node)
        # Every DequantizeLinear has a zero point of its own: sharing one between int8 weights makes ONNX Runtime 1.31 fail
        # to load the file under session.x64quantprecision=1 ("Attempt to replace the existing tensor").
        base = self.graph.name(node).removesuffix(REAL)
        scales, zeros = (t.flatten() if dq.axis is not None else t for t in (dq.grid.scale, dq.grid.zero))
        scale = self.sheet.constant(f"{base}/scale", scales.numpy())
        zero = self.sheet.constant(f"{base}/zero", zeros.to(dq.grid.format.dtype).numpy())
        self.sheet.add("DequantizeLinear", [codes, scale, zero], output, axis=dq.axis)
        self._know(node, output)
        if dq.axis is None and dq.source.op != "get_attr":
            self.sheet.decoded[output] = Decoded(codes, scale, zero)

    def _on_codes(self, node: fx.Node) -> bool:
        """Whether the call is written where its result is quantized, on codes, and so not here."""
        users = list(node.users)
        return len(users) == 1 and self._moved_on_codes(node, users[0])

    def _moved_on_codes(self, node: fx.Node, user: fx.Node) -> bool:
        """Whether `node` only moves decoded codes that `user` puts back on the very same grid."""
        q = read_quantize(self.graph, user)
        if q is None or q.source is not node or op_name(node) not in MOVES or len(node.users) != 1:
            return False
        dq = read_dequantize(self.graph, node.all_input_nodes[0])
        return dq is not None and dq.axis is None and q.axis is None and dq.grid.same_as(q.grid)

    def _samples(self, node: fx.Node) -> list[Tensor]:
        return [self._value(n) for n in node.all_input_nodes if n.op != "get_attr"]

    def _value(self, node: fx.Node) -> Any:
        return self._values[self.graph.name(node)]

    @cached_property
    def _values(self) -> dict[str, Any]:
        """Value name -> what the graph computes of random inputs at a batch size of 2, several results included."""
        given = example_inputs(self.graph, batch=2)
        kept: dict[str, Any] = dict(zip((i.name for i in self.graph.inputs), given, strict=True))
        with torch.no_grad():
            walk(program(self.graph), given, lambda step, value: kept.__setitem__(step.name, value))
        return kept

    def model(self) -> onnx.ModelProto:
        """The model of what was written: no node and no constant that the outputs do not need."""
        graph = self.graph
        inputs = [
            helper.make_tensor_value_info(i.name, self._type(i.name, i.dtype), ["batch", *i.shape[1:]] if i.batch else i.shape)
            for i in graph.inputs
        ]
        nodes = {graph.name(n): n for n in graph}
        outputs = []
        for name in self.outputs:
            sizes: list[int | str | None] = list(self.sheet.sizes[name])
            sizes = ["batch" if n == 0 and s == -1 else None if s == -1 else s for n, s in enumerate(sizes)]
            written = self.sheet.shaped(self._operand(nodes[name]))
            outputs.append(helper.make_tensor_value_info(written, self._type(name, self.fakes[name].dtype), sizes))
        kept: list[onnx.NodeProto] = []
        used = {o.name for o in outputs}
        for node in reversed(self.sheet.nodes):
            if used.intersection(node.output):
                kept.append(node)
                used.update(node.input)
        initializers = [t for name, t in self.sheet.constants.items() if name in used]
        body = helper.make_graph(kept[::-1], "exactq", inputs, outputs, initializers, value_info=self._infos(kept, outputs))
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model.producer_name, model.producer_version = "exactq", __version__
        return model

    def _infos(self, nodes: Sequence[onnx.NodeProto], outputs: Sequence[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
        """Type and sizes of each value of the graph that the file holds: shape inference stops at some float operators."""
        made = {o for node in nodes for o in node.output} - {o.name for o in outputs}
        infos = []
        for node, name in self.names.items():
            fake = self.fakes.get(self.graph.name(node))
            if name in made and fake is not None and fake.dtype in _TYPES:
                sizes = [None if s == -1 else s for s in self.sheet.sizes[self.graph.name(node)]]
                infos.append(helper.make_tensor_value_info(name, _TYPES[fake.dtype], sizes))
        return infos

    def _type(self, name: str, dtype: torch.dtype) -> int:
        if dtype not in _TYPES:
            raise TargetError(f"`{name}` is of {str(dtype).removeprefix('torch.')}, which the ONNX file cannot hold")
        return _TYPES[dtype]
