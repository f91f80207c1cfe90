"""A graph -> an ONNX file in ONNX Runtime's dialect: folded integer weights, int32 bias, uint8 activations, QDQ around kernels.

Names are the model's: the tensor `layer1.0.relu/codes` holds the codes of the value `layer1.0.relu`, a node is called what it
makes. Movement runs on the codes themselves. Files hold no paths, no dates and no stack traces, and the same graph gives the
same bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx

from exactq import __version__
from exactq.errors import TargetError
from exactq.graphs.graph import Graph, constant, op_name
from exactq.graphs.programs import bind, example_inputs, shapes
from exactq.graphs.qdq import CODES, REAL, QuantizeNode, read_dequantize, read_quantize
from exactq.targets.onnxruntime.operators import MOVES, OPERATORS, OPSET, Sheet, pad

IR_VERSION = 10

_TYPES = {
    torch.float32: TensorProto.FLOAT,
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
    onnx.checker.check_model(model, full_check=True)
    return model


class _Writer:
    """Walks the graph once; holds the sheet and the ONNX name of each value."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sheet = Sheet()
        self.shape_of = shapes(graph, batch=2)
        self.names: dict[fx.Node, str] = {}
        self.outputs = graph.outputs

    def write(self, node: fx.Node) -> None:
        name = self.graph.name(node)
        if node.op == "placeholder":
            self._know(node, name)
        elif node.op == "get_attr":
            self.names[node] = name  # written where it is read: weights as codes, the rest as it is
        elif (q := read_quantize(self.graph, node)) is not None:
            self._quantize(node, q)
        elif read_dequantize(self.graph, node) is not None:
            self._dequantize(node)
        elif not self._on_codes(node):
            inputs = [self._operand(n) for n in node.all_input_nodes]
            self._call(node, inputs, self._result_name(node))

    def _know(self, node: fx.Node, name: str) -> None:
        self.names[node] = name
        self.sheet.ranks[name] = len(self.shape_of[self.graph.name(node)])

    def _result_name(self, node: fx.Node) -> str:
        """The plain value name; where the model's output is its decoded codes, the output keeps that name."""
        name = self.graph.name(node)
        if name.endswith(REAL) and name in self.outputs:
            return name.removesuffix(REAL)
        return f"{name}/float" if f"{name}{REAL}" in self.outputs else name

    def _operand(self, node: fx.Node) -> str:
        if node.op == "get_attr":
            return self.sheet.constant(self.graph.name(node), constant(self.graph.module, node).numpy())
        return self.names[node]

    def _call(self, node: fx.Node, inputs: Sequence[str], output: str) -> None:
        self._know(node, output)
        emit_op = OPERATORS.get(op_name(node))
        for operand, source in zip(inputs, node.all_input_nodes, strict=True):
            self.sheet.ranks.setdefault(operand, len(self.shape_of[self.graph.name(source)]))
        written = len(self.sheet.nodes)
        try:
            if emit_op is None:
                raise NotImplementedError
            emit_op(self.sheet, node, inputs, output)
        except NotImplementedError:
            del self.sheet.nodes[written:]
            self._by_torch(node, inputs, output)

    def _quantize(self, node: fx.Node, q: QuantizeNode) -> None:
        """Codes: of a constant folded, of a moved value moved, of any other by QuantizeLinear."""
        name = self.graph.name(node)
        source = q.source
        if source.op == "get_attr":
            codes = q.grid.encode(constant(self.graph.module, source))
            self.names[node] = self.sheet.constant(name, codes.numpy())
            return
        self._know(node, name)
        if self._moved_on_codes(source, node):
            codes_in = self._codes_behind(source.all_input_nodes[0])
            self.sheet.ranks[codes_in] = len(self.shape_of[self.graph.name(source.all_input_nodes[0])])
            if op_name(source) == "aten.constant_pad_nd":
                value = torch.tensor(float(source.args[2]) if len(source.args) > 2 else 0.0)  # type: ignore[arg-type]
                pad(self.sheet, source, [codes_in], name, fill=q.grid.encode(value).numpy())
            else:
                OPERATORS[op_name(source)](self.sheet, source, [codes_in], name)
            return
        scale = self.sheet.constant(f"{self.graph.name(source)}/scale" if CODES in name else f"{name}/scale", q.grid.scale.numpy())
        zero = self.sheet.constant(f"{scale.removesuffix('/scale')}/zero", q.grid.zero.to(q.grid.format.dtype).numpy())
        self.sheet.add("QuantizeLinear", [self.names[source], scale, zero], name)

    def _dequantize(self, node: fx.Node) -> None:
        dq = read_dequantize(self.graph, node)
        assert dq is not None
        codes = self.names[dq.source]
        if dq.source.op == "get_attr":
            codes = self.sheet.constant(codes, constant(self.graph.module, dq.source).numpy())
        output = self._result_name(node)
        # Every DequantizeLinear has a zero point of its own: sharing one between int8 weights makes ONNX Runtime 1.31 fail
        # to load the file under session.x64quantprecision=1 ("Attempt to replace the existing tensor").
        base = self.graph.name(node).removesuffix(REAL)
        scale = self.sheet.constant(f"{base}/scale", dq.grid.scale.flatten().numpy() if dq.axis is not None else dq.grid.scale.numpy())
        zeros = dq.grid.zero.flatten() if dq.axis is not None else dq.grid.zero
        zero = self.sheet.constant(f"{base}/zero", zeros.to(dq.grid.format.dtype).numpy())
        self.sheet.add("DequantizeLinear", [codes, scale, zero], output, axis=dq.axis)
        self._know(node, output)

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

    def _codes_behind(self, node: fx.Node) -> str:
        dq = read_dequantize(self.graph, node)
        assert dq is not None
        return self.names[dq.source]

    def _by_torch(self, node: fx.Node, inputs: Sequence[str], output: str) -> None:
        """Write the call by PyTorch's exporter: a model of this one operator, its nodes and constants renamed and copied."""
        run, _ = bind(self.graph, node)
        reads = [n for n in node.all_input_nodes if n.op != "get_attr"]
        samples = tuple(self._sample(n) for n in reads)
        operator = op_name(node)

        class One(torch.nn.Module):
            def forward(self, *values: Tensor) -> Any:
                return run(*values)

        free = any(i.batch for i in self.graph.inputs)
        dims = (tuple({0: torch.export.Dim.DYNAMIC} if free and s.ndim and s.shape[0] == 2 else None for s in samples),)
        try:
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                made = torch.onnx.export(One(), samples, dynamo=True, opset_version=OPSET, dynamic_shapes=dims, verbose=False)
            assert made is not None
            part = made.model_proto
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TargetError(f"`{self.graph.name(node)}`: ONNX cannot express `{operator}` ({reason})") from error
        if part.functions or len(part.graph.output) != 1:
            raise TargetError(f"`{self.graph.name(node)}`: ONNX cannot express `{operator}` as plain nodes with one result")
        data = [name for name, n in zip(inputs, node.all_input_nodes, strict=True) if n.op != "get_attr"]
        rename = dict(zip((i.name for i in part.graph.input), data, strict=True)) | {part.graph.output[0].name: output, "": ""}
        for tensor in part.graph.initializer:
            rename[tensor.name] = f"{output}/{tensor.name}"
            kept = TensorProto()
            kept.CopyFrom(tensor)
            kept.name, kept.doc_string = rename[tensor.name], ""
            self.sheet.constants[kept.name] = kept
        for made_node in part.graph.node:
            for result in made_node.output:
                rename.setdefault(result, f"{output}/{result}")
        for made_node in part.graph.node:
            copy = onnx.NodeProto()
            copy.op_type, copy.domain = made_node.op_type, made_node.domain
            copy.attribute.extend(made_node.attribute)
            copy.input.extend(rename[i] for i in made_node.input)
            copy.output.extend(rename[o] for o in made_node.output)
            copy.name = copy.output[0]
            self.sheet.nodes.append(copy)

    def _sample(self, node: fx.Node) -> Tensor:
        values: Any = self._values.get(self.graph.name(node))
        return values

    @property
    def _values(self) -> dict[str, Tensor]:
        if not hasattr(self, "_kept"):
            from exactq.graphs.programs import float_trace

            given = example_inputs(self.graph, batch=2)
            named = dict(zip((i.name for i in self.graph.inputs), given, strict=True))
            self._kept = named | float_trace(self.graph, given)
        return self._kept

    def model(self) -> onnx.ModelProto:
        graph = self.graph
        inputs = [
            helper.make_tensor_value_info(i.name, _TYPES[i.dtype], ["batch", *i.shape[1:]] if i.batch else list(i.shape))
            for i in graph.inputs
        ]
        outputs = []
        nodes = {graph.name(n): n for n in graph}
        free = any(i.batch for i in graph.inputs)
        values = self._values
        for name in self.outputs:
            value = values[name]
            shape: list[int | str] = list(value.shape)
            if free and shape and shape[0] == 2:
                shape[0] = "batch"
            outputs.append(helper.make_tensor_value_info(self.names[nodes[name]], _TYPES[value.dtype], shape))
        kept: list[onnx.NodeProto] = []
        used = {o.name for o in outputs}
        for node in reversed(self.sheet.nodes):
            if used.intersection(node.output):
                kept.append(node)
                used.update(node.input)
        initializers = [t for name, t in self.sheet.constants.items() if name in used]
        body = helper.make_graph(kept[::-1], "exactq", inputs, outputs, initializers)
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model.producer_name, model.producer_version = "exactq", __version__
        return model


def serialized(model: onnx.ModelProto) -> bytes:
    """The file's bytes, the same for the same model."""
    return model.SerializeToString(deterministic=True)


