"""Every tensor that ONNX Runtime makes of some files on this instruction set; numpy, onnx and onnxruntime alone.

    python answer.py FOLDER

For each `NAME.onnx` with its `NAME.npz` of inputs (in order, `0`, `1` …) in the folder it writes `NAME.optimized.onnx`, the
default session's graph, and `NAME.answers.npz`, the outputs of all its nodes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime


def session(model: bytes, *, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def answer(path: Path) -> None:
    optimized = path.with_suffix(".optimized.onnx")
    with np.load(path.with_suffix(".npz")) as stored:
        inputs = [stored[str(n)] for n in range(len(stored.files))]
    session(path.read_bytes(), optimized=optimized)
    model = onnx.load(optimized)
    present = {o.name for o in model.graph.output}
    names = [o for node in model.graph.node for o in node.output if o]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    whole = session(model.SerializeToString())
    outputs = [o.name for o in whole.get_outputs()]
    feeds = {i.name: x for i, x in zip(whole.get_inputs(), inputs, strict=True)}
    found = dict(zip(outputs, whole.run(None, feeds), strict=True))
    np.savez(path.with_suffix(".answers.npz"), names=np.array(outputs), **{str(n): found[o] for n, o in enumerate(outputs)})


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(4)
    for file in sorted(Path(sys.argv[1]).glob("*.onnx")):
        if not file.name.endswith(".optimized.onnx"):
            answer(file)
