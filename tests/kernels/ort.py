"""The real runtime, asked one operator at a time, without graph optimisations; numpy, onnx and onnxruntime alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

from .cases import Array, Case

onnxruntime.set_default_logger_severity(4)


def run(case: Case) -> Array:
    """What ONNX Runtime's CPU kernel answers."""
    kind = lambda a: helper.np_dtype_to_tensor_dtype(a.dtype)  # noqa: E731
    given = {name: a for name, a in case.inputs.items() if a is not None}
    names = [name if a is not None else "" for name, a in case.inputs.items()]
    while names[-1] == "":
        names.pop()
    node = helper.make_node(case.op, names, ["out"], domain=case.domain, **case.attributes)
    graph = helper.make_graph(
        [node],
        "case",
        [helper.make_tensor_value_info(name, kind(given[name]), given[name].shape) for name in case.fed],
        [helper.make_tensor_value_info("out", helper.np_dtype_to_tensor_dtype(np.dtype(case.out)), None)],
        [numpy_helper.from_array(a, name) for name, a in given.items() if name not in case.fed],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    out: Any = session(model.SerializeToString()).run(None, {name: given[name] for name in case.fed})[0]
    return np.asarray(out)


def session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@cache
def isa() -> str:
    """The name of this machine's arithmetic, found by asking: 255·127 over four saturates twice without VNNI."""
    probe = Case(
        "MatMulInteger", {"x": np.full((1, 4), 255, np.uint8), "w": np.full((4, 8), 127, np.int8)}, ("x", "w"), "int32"
    )
    return {65534: "avx2", 129540: "avx512vnni"}[int(run(probe)[0, 0])]
