"""One call by PyTorch's own exporter: a model of this one operator, its nodes and constants renamed and copied."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import onnx
import torch
from onnx import TensorProto
from torch import Tensor, fx

from exactq.errors import TargetError
from exactq.graphs.graph import Graph, op_name
from exactq.graphs.programs import bind
from exactq.targets.onnxruntime.operators import OPSET, Sheet


def translate(
    graph: Graph, node: fx.Node, sheet: Sheet, inputs: Mapping[fx.Node, str], outputs: Sequence[str], samples: Sequence[Tensor]
) -> None:
    """Write a call whose operands have these ONNX names so that its results have those.

    `samples` are values of the operands that are no constants, in order, at a batch size of 2; a first dimension of 2 stays
    free. Raises `TargetError` naming the value and the operator that ONNX cannot express.
    """
    name, operator = graph.name(node), op_name(node)
    part = _exported(graph, node, samples)
    if part.functions or len(part.graph.output) != len(outputs):
        raise TargetError(f"`{name}`: ONNX cannot express `{operator}` as plain nodes with {len(outputs)} result(s)")
    reads = [inputs[n] for n in node.all_input_nodes if n.op != "get_attr"]
    rename = dict(zip((i.name for i in part.graph.input), reads, strict=True)) | {"": ""}
    rename |= dict(zip((o.name for o in part.graph.output), outputs, strict=True))
    for tensor in part.graph.initializer:
        kept = TensorProto()
        kept.CopyFrom(tensor)
        kept.name = rename[tensor.name] = f"{outputs[0]}/{tensor.name}"
        kept.ClearField("doc_string")
        kept.ClearField("metadata_props")
        sheet.constants[kept.name] = kept
    for made in part.graph.node:
        for result in made.output:
            rename.setdefault(result, f"{outputs[0]}/{result}")
        copy = onnx.NodeProto(op_type=made.op_type, domain=made.domain)
        copy.attribute.extend(made.attribute)
        copy.input.extend(rename[i] for i in made.input)
        copy.output.extend(rename[o] for o in made.output)
        copy.name = next(o for o in copy.output if o)
        sheet.nodes.append(copy)
    for there, here in ((o.name, ours) for o, ours in zip(part.graph.output, outputs, strict=True)):
        if rename[there] != here:  # an operator that hands its operand on
            sheet.add("Identity", [rename[there]], here)


def _exported(graph: Graph, node: fx.Node, samples: Sequence[Tensor]) -> onnx.ModelProto:
    run, _ = bind(graph, node)

    class One(torch.nn.Module):
        def forward(self, *values: Tensor) -> Any:
            return run(*values)

    free = any(i.batch for i in graph.inputs)
    dims = tuple({0: torch.export.Dim.DYNAMIC} if free and s.ndim and s.shape[0] == 2 else None for s in samples)
    try:
        with _quiet():
            made = torch.onnx.export(
                One(), tuple(samples), dynamo=True, opset_version=OPSET, dynamic_shapes=(dims,), verbose=False
            )
            assert made is not None
            return made.model_proto
    except Exception as error:
        raise TargetError(f"`{graph.name(node)}`: ONNX cannot express `{op_name(node)}` ({_cause(error)})") from error


def _cause(error: BaseException) -> str:
    """What went wrong first, in a line: the exporter wraps errors in advice on how to report them."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """A context in which the exporter keeps its progress and its warnings to itself."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
