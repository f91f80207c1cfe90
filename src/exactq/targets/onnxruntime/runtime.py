"""The real ONNX Runtime: which arithmetic this machine has, what a file answers, and every tensor of the optimised session."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from exactq.errors import TargetError
from exactq.targets.onnxruntime import alone, tracing
from exactq.traces import Trace

VERSION: str = ort.__version__


def session(model: bytes, *, threads: int = 0, optimized: Path | None = None, optimize: bool = True) -> ort.InferenceSession:
    """A session on the CPU provider as a user gets it; `optimized` also writes the optimised model there.

    `threads` 0 leaves the number to ONNX Runtime. Raises `TargetError` with the runtime's own words.
    """
    options = alone.options(threads)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model, options, providers=alone.PROVIDERS)
    except Exception as error:
        raise TargetError(f"ONNX Runtime {VERSION} cannot load the model: {str(error).strip().splitlines()[0]}") from error


def run(made: ort.InferenceSession, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs of a session for one batch; raises `TargetError` where they do not fit it."""
    places = made.get_inputs()
    if len(places) != len(inputs):
        raise TargetError(f"the file takes {len(places)} inputs ({', '.join(p.name for p in places)}), not {len(inputs)}")
    feeds = {place.name: x.contiguous().numpy() for place, x in zip(places, inputs, strict=True)}
    try:
        return tuple(torch.from_numpy(np.ascontiguousarray(y)) for y in made.run(None, feeds))
    except Exception as error:
        raise TargetError(f"ONNX Runtime {VERSION} fails: {str(error).strip().splitlines()[0]}") from error


@cache
def saturates_here() -> bool:
    """Whether this machine's u8×s8 kernel saturates int16 pairs: 4 products of 255·127, asked of the runtime itself."""
    weight = numpy_helper.from_array(np.full((4, 8), 127, np.int8), "b")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 8])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (answer,) = run(session(model.SerializeToString()), [torch.full((1, 4), 255, dtype=torch.uint8)])
    return int(answer[0, 0]) != 4 * 255 * 127


def detect_isa() -> str:
    """The measured instruction set whose arithmetic this machine's ONNX Runtime has.

    Decided by the runtime's own answer to a saturating product, not by a list of CPUs. Raises `TargetError` on machines other
    than x86-64, whose kernels were not measured here.
    """
    import platform

    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise TargetError(
            f"the kernels of ONNX Runtime on {platform.machine()} were not measured: name one that was, as in onnxruntime@avx2"
        )
    return "avx2" if saturates_here() else "avx512vnni"


def trace(model: bytes, inputs: Sequence[Tensor]) -> Trace:
    """Every integer tensor of the optimised session, by the name it has in `model`, and the outputs.

    The session is optimised as the user's is and written out; that optimised graph is run once more with all its tensors as
    outputs and no further optimisation. Fused operators are found by their node's name: ONNX Runtime keeps it, and adds a
    suffix where it changes the layout. Tensors that it holds channels-last come back channels-first.
    """
    return Tracer(model).trace(inputs)


class Tracer:
    """An instrumented copy of the optimised session of one model."""

    def __init__(self, model: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "optimized.onnx")
            session(model, optimized=path)
            self.optimized = onnx.load(path)
        self._held = tracing.find(onnx.load_from_string(model), self.optimized)
        instrumented = onnx.ModelProto()
        instrumented.CopyFrom(self.optimized)
        present = {o.name for o in instrumented.graph.output}
        for tensor in dict.fromkeys(view.tensor for view in self._held.values()):
            if tensor not in present:
                instrumented.graph.output.append(onnx.ValueInfoProto(name=tensor))
        self._session = session(instrumented.SerializeToString(), optimize=False)
        self._names = [o.name for o in self._session.get_outputs()]

    def trace(self, inputs: Sequence[Tensor]) -> Trace:
        """The traced tensors for one batch, channels-first."""
        values = dict(zip(self._names, run(self._session, inputs), strict=True))
        return {
            name: values[view.tensor].permute([view.axes.index(axis) for axis in range(len(view.axes))])
            for name, view in self._held.items()
        }

    @property
    def operators(self) -> dict[str, int]:
        """How often each operator stands in the optimised graph."""
        counts: dict[str, int] = {}
        for node in self.optimized.graph.node:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
        return dict(sorted(counts.items()))
